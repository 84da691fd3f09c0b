// Package renewal calculates when to renew a certificate, and when to retry. It does
// not renew.
package renewal

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// SlowestRetry is the longest wait between the retries of a failing renewal, unless its
// Validity has another.
const SlowestRetry = 5 * time.Minute

const (
	// triesBeforeExpiry is the minimum number of tries from the time when a renewal is
	// due to the certificate's expiry.
	triesBeforeExpiry = 8
	firstRetry        = time.Second
	// leastRetry is the shortest wait for certificates that live for seconds; for
	// others it is firstRetry.
	leastRetry = 100 * time.Millisecond
)

// Validity has the facts about a certificate that decide when to renew it.
type Validity struct {
	// Issued is when the certificate was issued, by the node's clock. The
	// certificate's notBefore is earlier, because CAs backdate. NotAfter is its effective
	// expiry: when it or a certificate of the CA in its chain expires first.
	Issued, NotAfter time.Time
	// LimitedBy describes the certificate of the CA that expires at NotAfter, and
	// LeafNotAfter is then the certificate's own expiry. LimitedBy is empty if the certificate
	// itself expires first.
	LimitedBy    string
	LeafNotAfter time.Time
	// Before is how long before NotAfter to renew; zero means a third of the
	// lifetime.
	Before time.Duration
	// MinInterval is the shortest time from Issued to the next renewal, or half of the
	// lifetime if that is less: no certificate expires because of it.
	MinInterval time.Duration
	// Spread in [0, 1) is this certificate's place in the time that renewals are spread
	// over. It must stay the same after a restart.
	Spread float64
	// SlowestRetry is the longest wait between the retries of a failing renewal; zero
	// means the constant of that name.
	SlowestRetry time.Duration
}

// Window is how long before expiry the renewal is due, without the spread. It is always
// shorter than the lifetime, also if the CA shortened that: otherwise every certificate
// would be due at once.
func (v Validity) Window() time.Duration {
	lifetime := v.NotAfter.Sub(v.Issued)
	if v.Before <= 0 || v.Before >= lifetime {
		return lifetime / 3
	}
	return v.Before
}

// Due is when to renew, by the wall clock. The spread is ±10 % of the time until then,
// but at most half of the window, so that certificates that were issued together are
// not renewed together. MinInterval shifts the spread, and does not cut it off.
func (v Validity) Due() time.Time {
	due := v.NotAfter.Add(-v.Window())
	spread := min(due.Sub(v.Issued)/10, v.Window()/2)
	first := due.Add(-spread)
	if earliest := v.Earliest(); earliest.After(first) {
		first = earliest
	}
	return first.Add(time.Duration(2 * v.Spread * float64(spread))).Round(0)
}

// Earliest is before when the certificate must not be renewed, because of MinInterval.
func (v Validity) Earliest() time.Time {
	return v.Issued.Add(min(v.MinInterval, v.NotAfter.Sub(v.Issued)/2)).Round(0)
}

// Lifetime is how long the certificate would work if nothing limited it.
func (v Validity) Lifetime() time.Duration {
	if v.LimitedBy != "" {
		return v.LeafNotAfter.Sub(v.Issued)
	}
	return v.NotAfter.Sub(v.Issued)
}

// Retry is how long to wait after a number of failures in a row, at least one. The
// wait doubles, up to the slowest, and is short enough for triesBeforeExpiry tries
// before expiry, as long as there is time for them. random in [0, 1) is the jitter,
// which shortens the wait by up to a half.
func (v Validity) Retry(failures int, now time.Time, random float64) time.Duration {
	wait := cmp.Or(v.SlowestRetry, SlowestRetry)
	window := v.Window()
	if v.LimitedBy != "" {
		window = v.Lifetime() / 3 // what the CA's certificate leaves can be too short to retry by
	}
	// There is no window if nothing is known about the certificate.
	if window > 0 {
		wait = min(wait, window/triesBeforeExpiry)
	}
	if doubled := firstRetry << min(failures-1, 10); doubled < wait {
		wait = doubled
	}
	if remaining := v.NotAfter.Sub(now); remaining > 0 {
		wait = min(wait, remaining/triesBeforeExpiry)
	}
	wait = max(wait, leastRetry, min(firstRetry, window/64))
	return wait - time.Duration(random*float64(wait)/2)
}

// SpreadOf is the spread of the certificate with the serial number.
func SpreadOf(serial string) float64 {
	sum := sha256.Sum256([]byte(serial))
	return float64(binary.BigEndian.Uint64(sum[:])>>11) / (1 << 53)
}
