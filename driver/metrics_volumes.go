package driver

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/driver/schedule"
)

// volumeCollector reads the tracked volumes whenever it is asked. Nothing is kept,
// so a volume's series vanish with it.
type volumeCollector struct {
	driver *Driver

	expiration, issued, renewal, failures *prometheus.Desc // of each volume
	volumes, backoff, overdue             *prometheus.Desc // of each issuer
}

func newVolumeCollector(d *Driver) *volumeCollector {
	perVolume := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("step_csi_certificate_"+name, help, []string{"namespace", "pod", "volume", "issuer"}, nil)
	}
	perIssuer := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("step_csi_"+name, help, []string{"issuer"}, nil)
	}
	return &volumeCollector{
		driver:     d,
		expiration: perVolume("expiration_timestamp_seconds", "When the certificate in a pod's volume expires."),
		issued:     perVolume("issued_timestamp_seconds", "When the certificate came, by the node's clock."),
		renewal:    perVolume("renewal_timestamp_seconds", "When its renewal is tried next; a time in the past if that is under way, or waits for others."),
		failures:   perVolume("renewal_failures", "Renewals that failed in a row; 0 after one that succeeded."),
		volumes:    perIssuer("volumes", "Volumes that are mounted."),
		backoff:    perIssuer("volumes_backoff", "Volumes whose last renewal failed, and which wait to try again."),
		overdue:    perIssuer("volumes_overdue", "Volumes whose renewal was due and has not succeeded."),
	}
}

// Describe implements prometheus.Collector.
func (c *volumeCollector) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.expiration, c.issued, c.renewal, c.failures, c.volumes, c.backoff, c.overdue} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector.
func (c *volumeCollector) Collect(out chan<- prometheus.Metric) {
	counts := map[string]*volumeCounts{}
	for name := range c.driver.authorities {
		counts[name] = &volumeCounts{}
	}
	now := time.Now()
	states := map[volumeLabels]schedule.State{}
	for _, v := range c.driver.mounted() {
		labels, s := v.labels(), v.state()
		if counts[labels.issuer] == nil {
			counts[labels.issuer] = &volumeCounts{} // of an earlier configuration
		}
		counts[labels.issuer].add(s, now)
		// A pod that was deleted by force may be there beside a new one of its
		// name. Two series of the same labels would spoil all.
		if other, twice := states[labels]; !twice || other.Validity.Issued.Before(s.Validity.Issued) {
			states[labels] = s
		}
	}
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for l, s := range states {
		labels := []string{l.namespace, l.pod, l.volume, l.issuer}
		send(c.expiration, seconds(s.Validity.NotAfter), labels...)
		send(c.issued, seconds(s.Validity.Issued), labels...)
		send(c.renewal, seconds(s.Next), labels...)
		send(c.failures, float64(s.Failures), labels...)
	}
	for name, n := range counts {
		send(c.volumes, float64(n.all), name)
		send(c.backoff, float64(n.backoff), name)
		send(c.overdue, float64(n.overdue), name)
	}
}

// seconds since 1970; 0 for a time that is not known.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// volumeLabels tell volumes apart.
type volumeLabels struct{ namespace, pod, volume, issuer string }

// labels of a volume. One that does not fit the configuration has no parsed
// attributes.
func (v *volume) labels() volumeLabels {
	return volumeLabels{
		namespace: v.record.Pod.Namespace,
		pod:       v.record.Pod.Name,
		volume:    cmp.Or(nameInPod(v.record.Target), v.record.VolumeID),
		issuer:    cmp.Or(v.attributes.Issuer, v.record.Attributes["issuer"], "default"),
	}
}

// nameInPod is the volume's name in the pod's spec, which the kubelet makes the
// target path with: pods/<uid>/volumes/kubernetes.io~csi/<name>/mount. It is empty
// for any other path.
func nameInPod(target string) string {
	parts := strings.Split(target, "/")
	if n := len(parts); n >= 3 && parts[n-1] == "mount" && parts[n-3] == "kubernetes.io~csi" {
		return parts[n-2]
	}
	return ""
}

type volumeCounts struct{ all, backoff, overdue int }

func (n *volumeCounts) add(s schedule.State, now time.Time) {
	n.all++
	if s.Failures > 0 {
		n.backoff++
	}
	if s.Failures > 0 || now.After(s.Validity.Due()) {
		n.overdue++
	}
}

// mounted are the tracked volumes, but those that were found gone.
func (d *Driver) mounted() []*volume {
	d.mu.Lock()
	all := slices.Collect(maps.Values(d.volumes))
	d.mu.Unlock()
	return slices.DeleteFunc(all, func(v *volume) bool { return v.gone.Load() })
}
