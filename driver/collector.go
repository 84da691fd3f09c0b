package driver

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/trust"
)

// mostRoots limits the series of an issuer, because its CA decides how many roots it
// has. The collector reports the roots that expire next, and then those that have expired.
const mostRoots = 8

const (
	// A certificate is expiring when less than expiringShare of its lifetime is left until
	// its effective expiry, and its renewal has failed or is later than overdueAfter. The
	// share fits all lifetimes, and a pod may ask for a late renewal.
	expiringShare = 0.2
	overdueAfter  = 5 * time.Minute
)

// collector reads volumes and issuers at each scrape. It stores nothing, so the series
// of a namespace or of a volume end when the volumes are removed.
type collector struct {
	issuers map[string]*issuerState
	volumes func(yield func(volumeSnapshot) bool)
	unread  func() int // counts volumes that could not be adopted: their issuer is unknown

	// Of the volumes of a namespace and issuer.
	count, backoff, overdue, expiring, unmanaged *prometheus.Desc
	firstExpiration, firstIssued                 *prometheus.Desc
	// Of each volume, unless perVolume is nil.
	perVolume *perVolume
	// Of each issuer.
	waiting, rootExpiration *prometheus.Desc
}

// perVolume has the optional series of each volume.
type perVolume struct{ expiration, issued, renewal, failures *prometheus.Desc }

func newCollector(d *Driver) *collector {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("step_csi_"+name, help, labels, nil)
	}
	volumes := func(name, help string) *prometheus.Desc {
		return describe("volumes"+name, help, "namespace", "issuer")
	}
	c := &collector{
		issuers:   d.issuers,
		volumes:   d.snapshots,
		unread:    func() int { return d.volumes.countUnread() + d.leftBehind.countUnread() },
		count:     volumes("", "Mounted volumes, also those with trust only."),
		backoff:   volumes("_backoff", "Volumes whose last renewal failed, and that wait for a retry, and volumes that are not renewed."),
		overdue:   volumes("_overdue", "Volumes whose renewal is due and has not succeeded, and volumes that are not renewed."),
		expiring:  volumes("_expiring", "Volumes whose certificate has less than a fifth of its lifetime left, and whose renewal fails or is overdue."),
		unmanaged: volumes("_unmanaged", "Volumes that are not renewed: something else is mounted at their path, they do not fit the configuration, they belong to another driver name, or the kubelet has not published them within 5 minutes since the node plugin started."),
		firstExpiration: volumes("_earliest_expiration_timestamp_seconds",
			"Effective expiry of the certificate that expires first: its own, or that of its intermediate or root if that is earlier; 0 if unknown."),
		firstIssued: volumes("_earliest_issued_timestamp_seconds",
			"Time at which the oldest certificate was asked for, by the node's clock; 0 if unknown."),
		waiting:        describe("signings_waiting", "First certificates that wait for other calls to the issuer.", "issuer"),
		rootExpiration: describe("root_expiration_timestamp_seconds", "Expiry of a root of the issuer, of a CA that its CA is federated with, or of an additional root.", "issuer", "fingerprint"),
	}
	if d.config.MetricsPerVolume {
		volume := func(name, help string) *prometheus.Desc {
			return describe("certificate_"+name, help, "namespace", "pod", "volume", "issuer")
		}
		c.perVolume = &perVolume{
			expiration: volume("expiration_timestamp_seconds", "Effective expiry of the certificate in a pod's volume: its own, or that of its intermediate or root if that is earlier."),
			issued:     volume("issued_timestamp_seconds", "Time at which the certificate was asked for, by the node's clock."),
			renewal:    volume("renewal_timestamp_seconds", "Time of the next renewal or retry; in the past if it is under way, or waits for others."),
			failures:   volume("renewal_failures", "Failed renewals in a row; 0 after a successful one, and at least 1 for a volume that is not renewed."),
		}
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descriptions chan<- *prometheus.Desc) {
	all := []*prometheus.Desc{
		c.count, c.backoff, c.overdue, c.expiring, c.unmanaged, c.firstExpiration, c.firstIssued,
		c.waiting, c.rootExpiration,
	}
	if p := c.perVolume; p != nil {
		all = append(all, p.expiration, p.issued, p.renewal, p.failures)
	}
	for _, d := range all {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector. The registry calls it in a goroutine.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	defer panics.Recover(context.Background(), "collect metrics", nil)
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for name, i := range c.issuers {
		send(c.waiting, float64(i.Scheduler.Waiting()), name)
		roots := i.LatestRoots()
		roots.Public = nil // the administrator cannot replace them
		for _, root := range nextToExpire(roots.All(), time.Now()) {
			send(c.rootExpiration, seconds(root.NotAfter), name, trust.Fingerprint(root))
		}
	}
	now := time.Now()
	groups := map[groupLabels]*volumeGroup{}
	group := func(labels groupLabels) *volumeGroup {
		if groups[labels] == nil {
			groups[labels] = &volumeGroup{}
		}
		return groups[labels]
	}
	newest := map[volumeLabels]volumeSnapshot{}
	for v := range c.volumes {
		group(v.group()).add(v, now)
		if c.perVolume == nil || v.trustOnly { // the series are about its certificate
			continue
		}
		// A pod that was deleted by force may still run beside a new pod of the same
		// name. Prometheus rejects two series with the same labels.
		labels := v.labels()
		if other, twice := newest[labels]; !twice || other.state.Validity.Issued.Before(v.state.Validity.Issued) {
			newest[labels] = v
		}
	}
	if n := c.unread(); n > 0 {
		g := group(groupLabels{})
		g.certificates, g.backoff, g.overdue, g.unmanaged = g.certificates+n, g.backoff+n, g.overdue+n, g.unmanaged+n
	}
	for l, g := range groups {
		send(c.count, float64(g.all), l.namespace, l.issuer)
		send(c.backoff, float64(g.backoff), l.namespace, l.issuer)
		send(c.overdue, float64(g.overdue), l.namespace, l.issuer)
		send(c.expiring, float64(g.expiring), l.namespace, l.issuer)
		send(c.unmanaged, float64(g.unmanaged), l.namespace, l.issuer)
		if g.certificates == 0 {
			continue
		}
		send(c.firstExpiration, seconds(g.firstExpiration), l.namespace, l.issuer)
		send(c.firstIssued, seconds(g.firstIssued), l.namespace, l.issuer)
	}
	for l, v := range newest {
		s, labels := v.state, []string{l.namespace, l.pod, l.volume, l.issuer}
		send(c.perVolume.expiration, seconds(s.Validity.NotAfter), labels...)
		send(c.perVolume.issued, seconds(s.Validity.Issued), labels...)
		send(c.perVolume.renewal, seconds(s.Next), labels...)
		send(c.perVolume.failures, float64(v.failures()), labels...)
	}
}

// nextToExpire returns the roots that expire next, and then those that expired last, without
// duplicates.
func nextToExpire(roots []*x509.Certificate, now time.Time) []*x509.Certificate {
	byExpiry := slices.SortedFunc(slices.Values(roots), func(a, b *x509.Certificate) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), bytes.Compare(a.Raw, b.Raw))
	})
	byExpiry = slices.CompactFunc(byExpiry, (*x509.Certificate).Equal)
	next := trust.Unexpired(byExpiry, now)
	expired := byExpiry[:len(byExpiry)-len(next)]
	slices.Reverse(expired)
	all := slices.Concat(next, expired)
	return all[:min(len(all), mostRoots)]
}

// seconds returns the Unix time in seconds, or 0 for an unknown time.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// groupLabels identify volumes in metrics that are aggregated.
type groupLabels struct{ namespace, issuer string }

func (v volumeSnapshot) group() groupLabels {
	return groupLabels{label(v.Pod.Namespace), v.issuer}
}

// volumeLabels identify a volume in metrics.
type volumeLabels struct{ namespace, pod, volume, issuer string }

func (v volumeSnapshot) labels() volumeLabels {
	return volumeLabels{
		namespace: label(v.Pod.Namespace),
		pod:       label(v.Pod.Name),
		volume:    label(cmp.Or(nameInPod(v.Target), v.VolumeID)),
		issuer:    v.issuer,
	}
}

// label returns the name as the value of a label. It is empty for a name that no object in
// Kubernetes can have: the record of an adopted volume may be forged.
func label(name string) string {
	const longestName = 253 // bytes
	if len(name) > longestName {
		return ""
	}
	return name
}

// mostRemoved limits the issuers that are not in the configuration and have series.
const mostRemoved = 8

// issuerLabels returns a function that returns the value of the label "issuer" of each
// volume. A volume of an issuer that was removed from the configuration has its name once
// the kubelet has published the volume again: the publish of a new volume is refused unless
// its issuer is configured, so pods cannot create series. Before that, only the record says
// so, which can be forged, and the label is empty.
func (d *Driver) issuerLabels() func(*volume.Volume) string {
	removed := map[string]bool{}
	return func(v *volume.Volume) string {
		name := v.IssuerName()
		if _, known := d.issuers[name]; known || removed[name] {
			return name
		}
		if v.IsFound() || len(removed) >= mostRemoved || label(name) == "" {
			return ""
		}
		removed[name] = true
		return name
	}
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

// volumeGroup is the aggregate of the volumes of a namespace and issuer.
type volumeGroup struct {
	all, backoff, overdue, expiring, unmanaged int
	certificates                               int // volumes that are not trust only
	firstExpiration, firstIssued               time.Time
}

func (g *volumeGroup) add(v volumeSnapshot, now time.Time) {
	g.all++
	if !v.trustOnly {
		g.certificates++
	}
	if v.unmanaged != nil {
		g.unmanaged++
	}
	if v.failures() > 0 {
		g.backoff++
	}
	if v.failures() > 0 || v.isDue(now) {
		g.overdue++
	}
	if v.expiring(now) {
		g.expiring++
	}
	g.firstExpiration = earlier(g.firstExpiration, v.state.Validity.NotAfter)
	g.firstIssued = earlier(g.firstIssued, v.state.Validity.Issued)
}

// earlier returns the earlier time. Unknown times do not count.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
