package driver

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/issuer/trust"
)

// maxRoots bounds the series that a CA can cause, which says how many roots it
// has. Those that expire first matter most.
const maxRoots = 8

// rootCollector shows the roots that the issuers have answered last. To ask is not
// its business.
type rootCollector struct {
	metrics    *metrics
	expiration *prometheus.Desc
}

func newRootCollector(m *metrics) rootCollector {
	return rootCollector{m, prometheus.NewDesc("step_csi_root_expiration_timestamp_seconds",
		"When a root of the issuer expires.", []string{"issuer", "fingerprint"}, nil)}
}

// Describe implements prometheus.Collector.
func (c rootCollector) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- c.expiration }

// Collect implements prometheus.Collector.
func (c rootCollector) Collect(out chan<- prometheus.Metric) {
	for name, answered := range c.metrics.roots {
		known := answered.Load()
		if known == nil {
			continue
		}
		byExpiry := slices.SortedFunc(slices.Values(*known), func(a, b *x509.Certificate) int {
			return cmp.Or(a.NotAfter.Compare(b.NotAfter), bytes.Compare(a.Raw, b.Raw))
		})
		// Two series of the same labels would spoil all.
		once := slices.CompactFunc(byExpiry, (*x509.Certificate).Equal)
		for _, root := range once[:min(len(once), maxRoots)] {
			out <- prometheus.MustNewConstMetric(c.expiration, prometheus.GaugeValue, seconds(root.NotAfter), name, trust.Fingerprint(root))
		}
	}
}
