package driver

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// Status is the state of the node plugin and of its volumes, for people: "step-csi status"
// prints it. It has no key and no token. The JSON names are stable.
type Status struct {
	Time    time.Time `json:"time"`
	Node    string    `json:"node"`
	Driver  string    `json:"driver"`
	Version string    `json:"version"`
	// Ready is that of /readyz. NotReady is why it is not.
	Ready    bool   `json:"ready"`
	NotReady string `json:"notReady,omitempty"`
	// Registered tells whether the kubelet has registered the driver. It is missing if the
	// node plugin does not register itself.
	Registered *bool           `json:"registered,omitempty"`
	Issuers    []issuer.Status `json:"issuers"`
	// OtherDrivers are other driver names with volumes that nothing renews.
	OtherDrivers []OtherDriver `json:"otherDrivers,omitempty"`
	// Volumes are the mounted volumes, those that expire first at the beginning, and those with
	// trust only at the end.
	Volumes []VolumeStatus `json:"volumes"`
}

// VolumeStatus is the state of a mounted volume. Of a volume that could not be read, only
// the path, the state and the reason are known.
type VolumeStatus struct {
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	PodUID    string `json:"podUID,omitempty"`
	Volume    string `json:"volume,omitempty"` // its name in the pod's spec
	VolumeID  string `json:"volumeID,omitempty"`
	// Path is the target path, relative to the kubelet's directory.
	Path   string `json:"path"`
	Driver string `json:"driver"`
	Issuer string `json:"issuer,omitempty"`
	// TrustOnly means that the volume has only roots, and no certificate.
	TrustOnly bool `json:"trustOnly,omitempty"`
	// Names are the first names that were requested, and MoreNames counts the others.
	Names     []string `json:"names,omitempty"`
	MoreNames int      `json:"moreNames,omitempty"`
	// Serial is the serial number of the certificate, in decimal.
	Serial   string    `json:"serial,omitempty"`
	Issued   time.Time `json:"issued,omitzero"`
	NotAfter time.Time `json:"notAfter,omitzero"`
	// LimitedBy describes a certificate of the CA that expires at NotAfter, before the
	// pod's.
	LimitedBy string `json:"limitedBy,omitempty"`
	// Renewal is when the next renewal or retry is attempted.
	Renewal  time.Time `json:"renewal,omitzero"`
	Failures int       `json:"failures"` // in a row
	State    string    `json:"state"`
	Reason   string    `json:"reason,omitempty"` // of a volume that is not renewed
}

// The states of a volume.
const (
	// StateOK is that of a volume that is renewed when it is due.
	StateOK = "ok"
	// StateWaiting is that of a volume of an earlier process that the kubelet has not
	// published again, which takes up to 90 s.
	StateWaiting = "waiting"
	// StateFailing is that of a volume whose last renewal failed. It is retried.
	StateFailing = "failing"
	// StateOverdue is that of a volume whose renewal should have begun.
	StateOverdue = "overdue"
	// StateUnmanaged is that of a volume that is not renewed.
	StateUnmanaged = "unmanaged"
	// StateExpired is that of a volume whose certificate has expired.
	StateExpired = "expired"
)

// Fails tells whether somebody should look at the volume.
func (v VolumeStatus) Fails() bool { return v.State != StateOK && v.State != StateWaiting }

// Fails tells whether somebody should look at the node, apart from the volumes that this
// driver name has.
func (s Status) Fails() bool {
	return !s.Ready || len(s.OtherDrivers) > 0 || slices.ContainsFunc(s.Issuers, func(i issuer.Status) bool { return !i.Ready })
}

const (
	// mostNames and longestName limit the names of a volume in a Status, and longestReason
	// its reason, in bytes.
	mostNames     = 8
	longestName   = 256
	longestReason = 2 << 10
)

// Status returns the state of the driver. It takes the locks that metrics take, and waits
// for no CA.
func (d *Driver) Status() Status {
	now := time.Now()
	s := Status{
		Time: now.UTC(), Node: d.config.NodeName, Driver: d.config.Name, Version: d.config.Version,
		Issuers: d.readiness.Statuses(), OtherDrivers: d.leftBehind.summary(), Volumes: []VolumeStatus{},
	}
	if _, err := d.Ready(); err != nil {
		s.NotReady = bounded(err.Error(), longestReason)
	} else {
		s.Ready = true
	}
	if d.registrar != nil {
		registered := d.registrar.err() == nil
		s.Registered = &registered
	}
	for i := range s.Issuers {
		s.Issuers[i].Reason = bounded(s.Issuers[i].Reason, longestReason)
	}
	for v := range d.collector.volumes {
		s.Volumes = append(s.Volumes, v.status(now))
	}
	for path, reason := range d.volumes.allUnread() {
		s.Volumes = append(s.Volumes, VolumeStatus{
			Path: path, Volume: nameInPod(path), Driver: d.config.Name, State: StateUnmanaged, Failures: 1, Reason: bounded(reason.Error(), longestReason),
		})
	}
	slices.SortFunc(s.Volumes, func(a, b VolumeStatus) int {
		return cmp.Or(order(a.TrustOnly)-order(b.TrustOnly), a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Path, b.Path))
	})
	return s
}

func order(last bool) int {
	if last {
		return 1
	}
	return 0
}

// status returns the state for people.
func (v volumeSnapshot) status(now time.Time) VolumeStatus {
	validity := v.state.Validity
	s := VolumeStatus{
		Namespace: v.Pod.Namespace, Pod: v.Pod.Name, PodUID: v.Pod.UID, Volume: nameInPod(v.Target), VolumeID: v.VolumeID, Path: v.Target,
		Driver: v.driver, Issuer: label(v.IssuerName()), TrustOnly: v.trustOnly, Serial: v.Serial(),
		Issued: validity.Issued.UTC(), NotAfter: validity.NotAfter.UTC(), LimitedBy: validity.LimitedBy,
		Failures: v.failures(), State: v.condition(now),
	}
	if v.unmanaged == nil && !s.TrustOnly {
		s.Renewal = v.state.Next.UTC()
	}
	all := v.Names()
	for _, name := range all[:min(len(all), mostNames)] {
		s.Names = append(s.Names, bounded(name, longestName))
	}
	s.MoreNames = len(all) - len(s.Names)
	switch err := v.state.Err; {
	case v.unmanaged != nil:
		s.Reason = bounded(v.unmanaged.Error(), longestReason)
	case err != nil:
		s.Reason = bounded(err.Error(), longestReason)
	case s.State == StateOverdue:
		s.Reason = errOverdue.Error()
	case s.State == StateWaiting:
		s.Reason = "the kubelet has not published the volume since the node plugin started, which takes up to 90 s"
	}
	return s
}

// condition returns the volume's state.
func (v volumeSnapshot) condition(now time.Time) string {
	notAfter := v.state.Validity.NotAfter
	switch {
	case !notAfter.IsZero() && !now.Before(notAfter):
		return StateExpired
	case v.unmanaged != nil:
		return StateUnmanaged
	case v.state.Failures > 0:
		return StateFailing
	case v.IsFound():
		return StateWaiting
	case !v.state.Next.IsZero() && v.overdue(now):
		return StateOverdue
	}
	return StateOK
}

// bounded returns the text, cut to so many bytes.
func bounded(text string, limit int) string {
	if len(text) > limit {
		return strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}
