package driver

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/driver/schedule"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/trust"
)

// mostRoots limits the series of an issuer, because its CA decides how many roots it
// has. The collector reports the roots that expire first.
const mostRoots = 8

// collector reads volumes and issuers at each scrape. It stores nothing, so the series
// of a volume end when the volume is removed.
type collector struct {
	issuers map[string]*issuerState
	volumes func() []volumeSnapshot
	unread  func() int // counts volumes that could not be adopted: their issuer is unknown

	expiration, issued, renewal, failures       *prometheus.Desc // of each volume
	count, backoff, overdue, unmanaged, waiting *prometheus.Desc // of each issuer
	rootExpiration                              *prometheus.Desc
}

func newCollector(d *Driver) *collector {
	perVolume := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("step_csi_certificate_"+name, help, []string{"namespace", "pod", "volume", "issuer"}, nil)
	}
	perIssuer := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("step_csi_"+name, help, []string{"issuer"}, nil)
	}
	return &collector{
		issuers: d.issuers,
		volumes: func() (all []volumeSnapshot) {
			for _, v := range d.volumes.all() {
				all = append(all, volumeSnapshot{labelsOf(v), v.State(), v.Unmanaged() != nil})
			}
			return all
		},
		unread:     d.volumes.countUnread,
		expiration: perVolume("expiration_timestamp_seconds", "Expiry of the certificate in a pod's volume."),
		issued:     perVolume("issued_timestamp_seconds", "Time at which the certificate was asked for, by the node's clock."),
		renewal:    perVolume("renewal_timestamp_seconds", "Time of the next renewal or retry; in the past if it is under way, or waits for others."),
		failures:   perVolume("renewal_failures", "Failed renewals in a row; 0 after a successful one."),
		count:      perIssuer("volumes", "Mounted volumes."),
		backoff:    perIssuer("volumes_backoff", "Volumes whose last renewal failed, and that wait for a retry."),
		overdue:    perIssuer("volumes_overdue", "Volumes whose renewal is due and has not succeeded."),
		unmanaged:  perIssuer("volumes_unmanaged", "Volumes that are not renewed: something else is mounted at their path, they do not fit the configuration, or the kubelet has not published them within 5 minutes since the node plugin started."),
		waiting:    perIssuer("signings_waiting", "First certificates that wait for other calls to the issuer."),
		rootExpiration: prometheus.NewDesc("step_csi_root_expiration_timestamp_seconds",
			"Expiry of a root of the issuer.", []string{"issuer", "fingerprint"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.expiration, c.issued, c.renewal, c.failures,
		c.count, c.backoff, c.overdue, c.unmanaged, c.waiting, c.rootExpiration,
	} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counts := map[string]*volumeCounts{}
	for name, i := range c.issuers {
		counts[name] = &volumeCounts{}
		send(c.waiting, float64(i.Scheduler.Waiting()), name)
		for _, root := range firstToExpire(i.LatestRoots().Own) {
			send(c.rootExpiration, seconds(root.NotAfter), name, trust.Fingerprint(root))
		}
	}
	now := time.Now()
	states := map[volumeLabels]schedule.State{}
	for _, v := range c.volumes() {
		labels, s := v.labels, v.state
		if counts[labels.issuer] == nil {
			counts[labels.issuer] = &volumeCounts{} // an issuer of an earlier configuration
		}
		counts[labels.issuer].add(v, now)
		// A pod that was deleted by force may still run beside a new pod of the same
		// name. Prometheus rejects two series with the same labels.
		if other, twice := states[labels]; !twice || other.Validity.Issued.Before(s.Validity.Issued) {
			states[labels] = s
		}
	}
	for l, s := range states {
		labels := []string{l.namespace, l.pod, l.volume, l.issuer}
		send(c.expiration, seconds(s.Validity.NotAfter), labels...)
		send(c.issued, seconds(s.Validity.Issued), labels...)
		send(c.renewal, seconds(s.Next), labels...)
		send(c.failures, float64(s.Failures), labels...)
	}
	if n := c.unread(); n > 0 {
		send(c.unmanaged, float64(n), "")
	}
	for name, n := range counts {
		send(c.count, float64(n.all), name)
		send(c.backoff, float64(n.backoff), name)
		send(c.overdue, float64(n.overdue), name)
		send(c.unmanaged, float64(n.unmanaged), name)
	}
}

// firstToExpire returns the roots that expire first, without duplicates.
func firstToExpire(roots []*x509.Certificate) []*x509.Certificate {
	byExpiry := slices.SortedFunc(slices.Values(roots), func(a, b *x509.Certificate) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), bytes.Compare(a.Raw, b.Raw))
	})
	once := slices.CompactFunc(byExpiry, (*x509.Certificate).Equal)
	return once[:min(len(once), mostRoots)]
}

// seconds returns the Unix time in seconds, or 0 for an unknown time.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// volumeSnapshot is the state of a volume at one scrape.
type volumeSnapshot struct {
	labels    volumeLabels
	state     schedule.State
	unmanaged bool
}

// volumeLabels identify a volume in metrics.
type volumeLabels struct{ namespace, pod, volume, issuer string }

func labelsOf(v *volume.Volume) volumeLabels {
	l := volumeLabels{
		namespace: v.Pod.Namespace,
		pod:       v.Pod.Name,
		volume:    cmp.Or(nameInPod(v.Target), v.VolumeID),
		issuer:    cmp.Or(v.Attributes["issuer"], "default"),
	}
	if i := v.Issuer(); i != nil {
		l.issuer = i.Name
	}
	return l
}

// nameInPod returns the volume's name in the pod's spec. The kubelet puts the name into
// the target path: pods/<uid>/volumes/kubernetes.io~csi/<name>/mount. For any other path,
// nameInPod returns an empty string.
func nameInPod(target string) string {
	parts := strings.Split(target, "/")
	if n := len(parts); n >= 3 && parts[n-1] == "mount" && parts[n-3] == "kubernetes.io~csi" {
		return parts[n-2]
	}
	return ""
}

type volumeCounts struct{ all, backoff, overdue, unmanaged int }

func (n *volumeCounts) add(v volumeSnapshot, now time.Time) {
	n.all++
	if v.unmanaged {
		n.unmanaged++
	}
	if v.state.Failures > 0 {
		n.backoff++
	}
	if v.state.Failures > 0 || now.After(v.state.Validity.Due()) {
		n.overdue++
	}
}
