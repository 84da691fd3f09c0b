package driver

import (
	"math/rand/v2"
	"time"
)

const (
	// slowestRetry is how far apart the tries of a failing renewal get.
	slowestRetry = 5 * time.Minute
	// triesBeforeExpiry is how many tries there are at least between the time a
	// certificate is due and its expiry.
	triesBeforeExpiry = 8
	firstRetry        = time.Second
	// leastRetry keeps the tries apart when no time is left.
	leastRetry = 100 * time.Millisecond
)

// validity is what the times of a renewal follow from.
type validity struct {
	// issued is when the certificate came, by the node's clock. The
	// certificate's own notBefore lies before that: CAs backdate.
	issued, notAfter time.Time
	// before is how long before notAfter to renew; zero means a third of the
	// lifetime.
	before time.Duration
}

// window is how long before expiry the renewal is due. A CA may give less time
// than was asked for; a window as long as the lifetime would renew for ever.
func (v validity) window() time.Duration {
	lifetime := v.notAfter.Sub(v.issued)
	if v.before <= 0 || v.before >= lifetime {
		return lifetime / 3
	}
	return v.before
}

// due is when to renew, spread by random in [0, 1) over ±10 % of the time until
// then, so that what was published together is not renewed together. With a
// short window the spread takes at most half of it.
func (v validity) due(random float64) time.Time {
	due := v.notAfter.Add(-v.window())
	spread := min(due.Sub(v.issued)/10, v.window()/2)
	return due.Add(time.Duration((2*random - 1) * float64(spread)))
}

// retry is how long to wait after so many failures in a row, at least one:
// doubling, at most five minutes, and such that there are eight tries before
// expiry, as long as there is time for them. random in [0, 1) takes up to half
// of it away.
func (v validity) retry(failures int, now time.Time, random float64) time.Duration {
	wait := min(slowestRetry, v.window()/triesBeforeExpiry)
	if doubled := firstRetry << min(failures-1, 10); doubled < wait {
		wait = doubled
	}
	if remaining := v.notAfter.Sub(now); remaining > 0 {
		wait = min(wait, remaining/triesBeforeExpiry)
	}
	wait = max(wait, leastRetry)
	return wait - time.Duration(random*float64(wait)/2)
}

// random is in [0, 1).
func random() float64 { return rand.Float64() }
