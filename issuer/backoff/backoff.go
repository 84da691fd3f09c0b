// Package backoff says how long to wait before a retry.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the wait before each retry of a failing call: it doubles from First to
// Max. Jitter shortens each wait by up to a half, so that processes that failed
// together do not retry together.
type Backoff struct {
	First, Max time.Duration

	wait time.Duration // before jitter; 0 before the first retry
}

// Next returns the wait before the next retry.
func (b *Backoff) Next() time.Duration {
	b.wait = min(max(2*b.wait, b.First), b.Max)
	return b.wait - time.Duration(rand.Float64()*float64(b.wait)/2)
}

// Reset starts again from First, after a success.
func (b *Backoff) Reset() { b.wait = 0 }

// Sleep waits. It returns false as soon as ctx ends.
func Sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
