package driver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/issuer"
)

// Operations that need a signature.
const (
	operationPublish = "publish"
	operationRenew   = "renew"
)

// What an issuer is asked for. They are told apart since the authority answers the
// roots that it knows also while its CA is away.
const (
	callSign  = "sign"
	callRoots = "roots"
)

// The results of asking for a signature.
const (
	resultSuccess     = "success"
	resultDenied      = "denied"
	resultUnavailable = "unavailable"
	resultInvalid     = "invalid_answer"
	resultNoToken     = "no_token"
	resultCanceled    = "canceled"
	resultOther       = "other"
)

// results are all there are: their counters begin at 0, so that the first of a
// kind is an increase.
var results = []string{resultSuccess, resultDenied, resultUnavailable, resultInvalid, resultNoToken, resultCanceled, resultOther}

// metrics are what is counted while it happens. What volumes say about themselves
// is read from them: see volumeCollector.
type metrics struct {
	signings *prometheus.CounterVec
	duration *prometheus.HistogramVec
	waiting  *prometheus.GaugeVec
	answered *prometheus.GaugeVec
	failed   *prometheus.GaugeVec
	// roots that each issuer has answered last; the keys stay as they are.
	roots map[string]*atomic.Pointer[[]*x509.Certificate]
}

func newMetrics() *metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	return &metrics{
		signings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "step_csi_signings_total",
			Help: "Certificates that were asked for, by issuer, operation (publish, renew) and result.",
		}, []string{"issuer", "operation", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "step_csi_signing_duration_seconds",
			Help:    "How long it took to make a key and have its certificate signed, whatever the result; without the wait for other calls.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14),
		}, []string{"issuer", "operation"}),
		waiting: gauge("step_csi_signings_waiting", "First certificates that wait for other calls to the issuer to end.", "issuer"),
		answered: gauge("step_csi_issuer_last_answer_timestamp_seconds",
			"When the issuer last did what it was asked for, by operation (sign, roots); 0 if never.", "issuer", "operation"),
		failed: gauge("step_csi_issuer_last_failure_timestamp_seconds",
			"When the issuer could last not be asked, or could not answer, by operation (sign, roots); 0 if never.", "issuer", "operation"),
		roots: map[string]*atomic.Pointer[[]*x509.Certificate]{},
	}
}

// registerMetrics registers all metrics of the driver.
func (d *Driver) registerMetrics(registry prometheus.Registerer) error {
	if registry == nil {
		return nil
	}
	m := d.metrics
	for _, c := range []prometheus.Collector{m.signings, m.duration, m.waiting, m.answered, m.failed, newRootCollector(m), newVolumeCollector(d)} {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("register the metrics: %w", err)
		}
	}
	return nil
}

// expect makes the series of an issuer, which nothing has happened to yet.
func (m *metrics) expect(name string) {
	for _, operation := range []string{operationPublish, operationRenew} {
		for _, result := range results {
			m.signings.WithLabelValues(name, operation, result)
		}
		m.duration.WithLabelValues(name, operation)
	}
	m.waiting.WithLabelValues(name)
	for _, call := range []string{callSign, callRoots} {
		m.answered.WithLabelValues(name, call)
		m.failed.WithLabelValues(name, call)
	}
	m.roots[name] = &atomic.Pointer[[]*x509.Certificate]{}
}

func operation(isRenewal bool) string {
	if isRenewal {
		return operationRenew
	}
	return operationPublish
}

// wait counts a call that waits, until done.
func (m *metrics) wait(name string) (done func()) {
	waiting := m.waiting.WithLabelValues(name)
	waiting.Inc()
	return waiting.Dec
}

// signed counts what became of a call.
func (m *metrics) signed(name string, isRenewal bool, begin time.Time, credential *issuer.Credential, err error) {
	m.signings.WithLabelValues(name, operation(isRenewal), result(err)).Inc()
	m.duration.WithLabelValues(name, operation(isRenewal)).Observe(time.Since(begin).Seconds())
	m.asked(name, callSign, err)
	if err == nil {
		m.roots[name].Store(&credential.Roots.Own)
	}
}

// refreshed is for an answer to the question for the roots.
func (m *metrics) refreshed(name string, roots issuer.Roots, err error) {
	m.asked(name, callRoots, err)
	if err == nil {
		m.roots[name].Store(&roots.Own)
	}
}

// asked keeps when there was an answer, and when there was none.
func (m *metrics) asked(name, call string, err error) {
	switch result(err) {
	case resultSuccess:
		m.answered.WithLabelValues(name, call).SetToCurrentTime()
	case resultUnavailable:
		m.failed.WithLabelValues(name, call).SetToCurrentTime()
	}
}

// result names what an error says.
func result(err error) string {
	switch {
	case err == nil:
		return resultSuccess
	case errors.Is(err, issuer.NoPodToken): // it is unavailable, too
		return resultNoToken
	case errors.Is(err, issuer.Denied):
		return resultDenied
	case errors.Is(err, issuer.InvalidAnswer):
		return resultInvalid
	case errors.Is(err, context.Canceled): // the plugin stops, the volume goes, or the kubelet gives up
		return resultCanceled
	case errors.Is(err, issuer.Unavailable), errors.Is(err, context.DeadlineExceeded):
		return resultUnavailable
	}
	return resultOther
}
