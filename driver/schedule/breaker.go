package schedule

import (
	"math/rand/v2"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// Breaker is a circuit breaker: it opens when the issuer is down, so that one
// renewal at a time probes it instead of all, and closes when a call succeeds. It
// has neither a clock nor a lock of its own.
type Breaker struct {
	err      error     // why it is open; nil while it is closed
	failures int       // in a row
	failed   time.Time // when the last one ended
	jitter   float64   // of the pause after it, in [0, 1)
}

// Observe updates the breaker after every call that ended now, and tells whether
// that closed it. Publishes come at the kubelet's pace, also while the issuer is
// down: they do not lengthen the pause between two probes.
func (b *Breaker) Observe(p Priority, began, now time.Time, err error) (closed bool) {
	o := issuer.OutcomeOf(err)
	switch {
	case o == issuer.OK:
		closed = b.err != nil
		*b = Breaker{}
	case o.IsDown() && (b.err == nil || p == Renewal && began.After(b.failed)):
		// Of calls that began together, one counts.
		b.err, b.failed, b.jitter = err, now, rand.Float64()
		b.failures++
	}
	return closed
}

// IsOpen tells whether the issuer was down when it was last called.
func (b *Breaker) IsOpen() bool { return b.err != nil }

// ProbeAt is when the next probe may begin, on behalf of a certificate.
func (b *Breaker) ProbeAt(v renewal.Validity, now time.Time) time.Time {
	return b.failed.Add(v.Retry(b.failures, now, b.jitter))
}
