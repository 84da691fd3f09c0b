package driver

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// Operations of an issuer. The metrics separate them, because the registration
// authority returns its known roots even while its CA is down.
const (
	callSign  = "sign"
	callRoots = "roots"
)

// operation returns the label "operation" of a call for a certificate.
func operation(p schedule.Priority) string {
	if p == schedule.Renewal {
		return "renew"
	}
	return "publish"
}

// metrics are updated after each call. The collector reads the state of volumes and
// issuers at each scrape.
type metrics struct {
	signings *prometheus.CounterVec
	duration *prometheus.HistogramVec
	answered *prometheus.GaugeVec
	failed   *prometheus.GaugeVec
	refusals *prometheus.CounterVec
}

func newMetrics() *metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		signings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "step_csi_signings_total",
			Help: "Calls for a certificate, by issuer, operation (publish, renew) and result.",
		}, []string{"issuer", "operation", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "step_csi_signing_duration_seconds",
			Help:    "Duration of calls for a certificate, whatever the result, without the generation of the key and the wait for other calls.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14),
		}, []string{"issuer", "operation"}),
		answered: gauge("step_csi_issuer_last_answer_timestamp_seconds",
			"Time of the issuer's last successful answer, by operation (sign, roots); 0 if there was none.", "issuer", "operation"),
		failed: gauge("step_csi_issuer_last_failure_timestamp_seconds",
			"Time of the last call that found the issuer down: unreachable, without an answer in time, or rejecting the node plugin; by operation (sign, roots); 0 if there was none.", "issuer", "operation"),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "step_csi_publishes_refused_total",
			Help: "Publishes of new volumes that were refused, by limit: volumes of the pod, volumes of the node, memory of the node plugin.",
		}, []string{"limit"}),
	}
	for _, limit := range []string{limitPod, limitNode, limitMemory} {
		m.refusals.WithLabelValues(limit)
	}
	return m
}

// registerMetrics registers all metrics of the driver.
func (d *Driver) registerMetrics(registry prometheus.Registerer) error {
	if registry == nil {
		return nil
	}
	m := d.metrics
	leftBehind := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "step_csi_left_behind_volumes",
		Help: "Mounted volumes of other driver names that no process on the node serves, and that are therefore not renewed.",
	}, func() float64 { return float64(d.leftBehind.count()) })
	all := append(d.quota.gauges(), leftBehind, m.signings, m.duration, m.answered, m.failed, m.refusals, d.collector, &d.readiness)
	if d.registrar != nil {
		all = append(all, d.registrar.gauge())
	}
	for _, c := range all {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("register the metrics: %w", err)
		}
	}
	return nil
}

// expect makes the series of an issuer before its first call. Counters start at 0, so
// that Prometheus sees the first call as an increase.
func (m *metrics) expect(name string) {
	for _, p := range []schedule.Priority{schedule.Publish, schedule.Renewal} {
		for _, outcome := range issuer.Outcomes() {
			if outcome != issuer.Unsupported { // only for revocations
				m.signings.WithLabelValues(name, operation(p), outcome.Label())
			}
		}
		m.duration.WithLabelValues(name, operation(p))
	}
	for _, call := range []string{callSign, callRoots} {
		m.answered.WithLabelValues(name, call)
		m.failed.WithLabelValues(name, call)
	}
}

// refused counts a volume that exceeds a limit.
func (m *metrics) refused(limit string) { m.refusals.WithLabelValues(limit).Inc() }

// signed counts a call for a certificate.
func (m *metrics) signed(name string, p schedule.Priority, began time.Time, o issuer.Outcome) {
	m.signings.WithLabelValues(name, operation(p), o.Label()).Inc()
	m.duration.WithLabelValues(name, operation(p)).Observe(time.Since(began).Seconds())
	m.called(name, callSign, o)
}

// called records when the issuer last answered, or was last down.
func (m *metrics) called(name, call string, o issuer.Outcome) {
	switch {
	case o == issuer.OK:
		m.answered.WithLabelValues(name, call).SetToCurrentTime()
	case o.IsDown():
		m.failed.WithLabelValues(name, call).SetToCurrentTime()
	}
}
