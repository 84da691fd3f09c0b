package server

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/issuer"
)

// metrics are the metrics of a server.
type metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	answered    *prometheus.GaugeVec
	failed      *prometheus.GaugeVec
	revocations *prometheus.CounterVec
	reports     *prometheus.CounterVec
	rejected    *prometheus.CounterVec
	closed      *prometheus.CounterVec
	connections atomic.Pointer[connections] // nil until it serves
}

func newMetrics(registry prometheus.Registerer, s *serving) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "step_csi_ra_requests_total",
			Help: "Requests to sign a certificate, by issuer and gRPC code.",
		}, []string{"issuer", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "step_csi_ra_request_duration_seconds",
			Help:    "Duration of requests to sign a certificate, whether they succeed or not, by issuer.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14),
		}, []string{"issuer"}),
		answered: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "step_csi_ra_issuer_last_answer_timestamp_seconds",
			Help: "Time when the CA of the issuer last answered a request for its roots; 0 if never.",
		}, []string{"issuer"}),
		failed: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "step_csi_ra_issuer_last_failure_timestamp_seconds",
			Help: "Time when a request for the roots of the issuer's CA last failed; 0 if never.",
		}, []string{"issuer"}),
		revocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "step_csi_ra_revocations_total",
			Help: "Requests to revoke a certificate, by issuer and gRPC code.",
		}, []string{"issuer", "code"}),
	}
	m.reports = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "step_csi_ra_reports_total",
		Help: "Reports of node plugins for events of pods, by reason and gRPC code. One event stands for repeated reports.",
	}, []string{"reason", "code"})
	for _, reason := range issuer.Reasons() {
		m.reports.WithLabelValues(string(reason), codes.OK.String())
	}
	m.rejected = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "step_csi_ra_rejected_calls_total",
		Help: "Calls that were rejected because of their caller, before the request was read, by reason.",
	}, []string{"reason"})
	m.closed = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "step_csi_ra_closed_connections_total",
		Help: "Connections that were refused or closed to protect the registration authority, by reason.",
	}, []string{"reason"})
	// The series exist before the first rejection.
	for _, reason := range []string{rejectedToken, rejectedClaims, rejectedReview, rejectedUnavailable, rejectedRate, rejectedMessage} {
		m.rejected.WithLabelValues(reason)
	}
	for _, reason := range []string{closedRate, closedCrowded, closedLate, closedBytes, closedReplaced, closedRejected, closedUnready} {
		m.closed.WithLabelValues(reason)
	}
	open := func(state string, count func(*connections) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "step_csi_ra_connections", ConstLabels: prometheus.Labels{"state": state},
			Help: "Open connections: accepted are those of node plugins, and pending those without an accepted call.",
		}, func() float64 {
			if all := m.connections.Load(); all != nil {
				return float64(count(all))
			}
			return 0
		})
	}
	pending := open("pending", func(c *connections) int { strangers, _ := c.sizes(); return strangers })
	accepted := open("accepted", func(c *connections) int { _, accepted := c.sizes(); return accepted })
	issued := s.gauge("step_csi_ra_certificate_issued_timestamp_seconds",
		"Time when the registration authority's own certificate was issued (notBefore); 0 if it has none.",
		func() (at time.Time) {
			if c := s.current.Load(); c != nil {
				at = c.Leaf.NotBefore
			}
			return at
		})
	expiry := s.gauge("step_csi_ra_certificate_expiration_timestamp_seconds",
		"Effective expiry of the registration authority's own certificate: its own, or that of its intermediate or root if that is earlier; 0 if it has none.",
		func() (at time.Time) {
			if v := s.validity.Load(); v != nil {
				at = v.NotAfter
			}
			return at
		})
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.answered, m.failed, m.revocations, m.reports, m.rejected, m.closed, pending, accepted, issued, expiry} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// gauge is a gauge for a time of the server's own certificate; 0 for the zero time.
func (s *serving) gauge(name, help string, at func() time.Time) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
		if at := at(); !at.IsZero() {
			return float64(at.Unix())
		}
		return 0
	})
}

// issuerLabel is the value of the label "issuer". It is empty for an unknown issuer:
// callers could create any number of series.
func (s *Server) issuerLabel(name string) string {
	if _, known := s.issuers[name]; !known {
		return ""
	}
	return name
}
