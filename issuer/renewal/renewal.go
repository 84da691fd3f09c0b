// Package renewal says when a certificate is to be renewed, and when to try
// again. It is only about times: whoever renews does so with it.
package renewal

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// SlowestRetry is how far apart the tries of a failing renewal get.
const SlowestRetry = 5 * time.Minute

const (
	// triesBeforeExpiry is how many tries there are at least between the time a
	// certificate is due and its expiry.
	triesBeforeExpiry = 8
	firstRetry        = time.Second
	// leastRetry keeps the tries apart when no time is left, for certificates that
	// live for seconds; for others it is firstRetry.
	leastRetry = 100 * time.Millisecond
)

// Validity is what the times of a renewal follow from.
type Validity struct {
	// Issued is when the certificate came, by the node's clock. The
	// certificate's own notBefore lies before that: CAs backdate.
	Issued, NotAfter time.Time
	// Before is how long before NotAfter to renew; zero means a third of the
	// lifetime.
	Before time.Duration
	// Spread in [0, 1) is this certificate's part of the time that due renewals
	// are spread over. It stays the same when a process takes over from another.
	Spread float64
}

// Window is how long before expiry the renewal is due, but for the spread. A CA may give less time
// than was asked for; a window as long as the lifetime would renew for ever.
func (v Validity) Window() time.Duration {
	lifetime := v.NotAfter.Sub(v.Issued)
	if v.Before <= 0 || v.Before >= lifetime {
		return lifetime / 3
	}
	return v.Before
}

// Due is when to renew, by the wall clock, spread over ±10 % of the time until then,
// so that what was published together is not renewed together. With a short window
// the spread takes at most half of it.
func (v Validity) Due() time.Time {
	due := v.NotAfter.Add(-v.Window())
	spread := min(due.Sub(v.Issued)/10, v.Window()/2)
	return due.Add(time.Duration((2*v.Spread - 1) * float64(spread))).Round(0)
}

// Retry is how long to wait after so many failures in a row, at least one:
// doubling, at most five minutes, and such that there are eight tries before
// expiry, as long as there is time for them. random in [0, 1) takes up to half
// of it away.
func (v Validity) Retry(failures int, now time.Time, random float64) time.Duration {
	wait := SlowestRetry
	// Without a lifetime, nothing is known of the certificate.
	if window := v.Window(); window > 0 {
		wait = min(wait, window/triesBeforeExpiry)
	}
	if doubled := firstRetry << min(failures-1, 10); doubled < wait {
		wait = doubled
	}
	if remaining := v.NotAfter.Sub(now); remaining > 0 {
		wait = min(wait, remaining/triesBeforeExpiry)
	}
	wait = max(wait, leastRetry, min(firstRetry, v.Window()/64))
	return wait - time.Duration(random*float64(wait)/2)
}

// SpreadOf is the spread of the certificate with the serial number.
func SpreadOf(serial string) float64 {
	sum := sha256.Sum256([]byte(serial))
	return float64(binary.BigEndian.Uint64(sum[:])>>11) / (1 << 53)
}
