package schedule

import (
	"math/rand/v2"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// Breaker is a circuit breaker. It opens when the issuer is down: then only one renewal
// at a time probes the issuer. It closes when a call succeeds. It has no clock and no
// lock of its own.
type Breaker struct {
	err      error     // why the breaker is open; nil while it is closed
	failures int       // in a row
	failed   time.Time // when the last failure ended
	jitter   float64   // of the pause before the next probe, in [0, 1)
}

// Observe updates the breaker after a call that ended now, and tells whether the call
// closed the breaker. The kubelet retries publishes at its own pace while the issuer is
// down, so their failures do not lengthen the pause between probes.
func (b *Breaker) Observe(p Priority, began, now time.Time, err error) (closed bool) {
	o := issuer.OutcomeOf(err)
	switch {
	case o == issuer.OK:
		closed = b.err != nil
		*b = Breaker{}
	case o.IsDown() && (b.err == nil || p == Renewal && began.After(b.failed)):
		// Of several failures of concurrent calls, only the first counts.
		b.err, b.failed, b.jitter = err, now, rand.Float64()
		b.failures++
	}
	return closed
}

// IsOpen tells whether the issuer was down at the last call.
func (b *Breaker) IsOpen() bool { return b.err != nil }

// ProbeAt returns when the next probe may start, if it renews this certificate.
func (b *Breaker) ProbeAt(v renewal.Validity, now time.Time) time.Time {
	return b.failed.Add(v.Retry(b.failures, now, b.jitter))
}
