package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/issuer/stepca"
)

// urlCollector is a prometheus.Collector for the issuers that have several URLs.
type urlCollector struct {
	issuers         map[string]*stepca.Failover
	inUse, failures *prometheus.Desc
}

// registerURLs registers the metrics of issuers with several URLs.
func (c *config) registerURLs(registry prometheus.Registerer) {
	labels := []string{"issuer", "url"}
	u := urlCollector{
		issuers:  map[string]*stepca.Failover{},
		inUse:    prometheus.NewDesc("step_csi_issuer_url_in_use", "1 for the URL of the CA that worked last, and 0 for its other URLs. Only for issuers with several URLs (urls).", labels, nil),
		failures: prometheus.NewDesc("step_csi_issuer_url_failures_total", "Calls that found the URL of the CA unavailable; they went on to the next URL. Only for issuers with several URLs (urls).", labels, nil),
	}
	for name, i := range c.issuers {
		if f, several := i.signer.(*stepca.Failover); several {
			u.issuers[name] = f
		}
	}
	registry.MustRegister(u)
}

// Describe implements prometheus.Collector.
func (u urlCollector) Describe(out chan<- *prometheus.Desc) {
	out <- u.inUse
	out <- u.failures
}

// Collect implements prometheus.Collector.
func (u urlCollector) Collect(out chan<- prometheus.Metric) {
	for name, f := range u.issuers {
		for _, state := range f.URLs() {
			inUse := 0.0
			if state.InUse {
				inUse = 1
			}
			out <- prometheus.MustNewConstMetric(u.inUse, prometheus.GaugeValue, inUse, name, state.URL)
			out <- prometheus.MustNewConstMetric(u.failures, prometheus.CounterValue, float64(state.Failures), name, state.URL)
		}
	}
}
