package driver

import (
	"time"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// volumeSnapshot is the state of a volume at one moment, for metrics, logs and people.
type volumeSnapshot struct {
	*volume.Volume
	driver    string // the volume's driver name
	issuer    string // the label "issuer"
	state     schedule.State
	unmanaged error // why the volume is not renewed
	trustOnly bool  // there is no certificate
}

// snapshots yields the state of the mounted volumes that could be read, with those of
// other driver names that no process serves.
func (d *Driver) snapshots(yield func(volumeSnapshot) bool) {
	issuerLabel := d.issuerLabels()
	for _, v := range d.volumes.all() {
		if !yield(volumeSnapshot{v, d.config.Name, issuerLabel(v), v.State(), v.Unmanaged(), v.TrustOnly()}) {
			return
		}
	}
	for _, v := range d.leftBehind.all() {
		state := v.State()
		state.Err = v.reason
		if !yield(volumeSnapshot{v.Volume, v.driver, issuerLabel(v.Volume), state, v.reason, v.TrustOnly()}) {
			return
		}
	}
}

// failures is the number of failed renewals in a row. A volume that is not renewed counts
// as failing, so that everything that watches failures shows it.
func (v volumeSnapshot) failures() int {
	if v.unmanaged != nil {
		return max(1, v.state.Failures)
	}
	return v.state.Failures
}

// expiring tells whether the certificate is about to expire, or has expired, because its
// renewal fails, is overdue, or is never attempted.
func (v volumeSnapshot) expiring(now time.Time) bool {
	if v.trustOnly || v.failures() == 0 && !v.overdue(now) {
		return false
	}
	validity := v.state.Validity
	return validity.NotAfter.Sub(now) < time.Duration(expiringShare*float64(validity.Lifetime()))
}

// overdue tells whether the renewal is later than the wait for others explains.
func (v volumeSnapshot) overdue(now time.Time) bool {
	return !v.trustOnly && now.Sub(v.state.Next) >= overdueAfter
}

// isDue tells whether a renewal is due.
func (v volumeSnapshot) isDue(now time.Time) bool {
	return !v.trustOnly && now.After(v.state.Validity.Due())
}
