package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

var (
	errRefused = fmt.Errorf("%w: connection refused", issuer.Unavailable)
	errSlow    = fmt.Errorf("%w: no answer in time", issuer.Unavailable)
)

// queue answers one call at a time, and each call takes the same time. It does not
// notice that a caller has given up, so it also works for callers that no longer wait.
type queue struct {
	takes   time.Duration // per call
	timeout time.Duration // of its callers

	mu    sync.Mutex
	away  bool      // whether it refuses connections
	hangs bool      // whether it accepts connections but never answers
	free  time.Time // when it will have answered all calls so far
}

// set changes the state of the queue.
func (q *queue) set(change func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change()
}

// answer waits until the call is answered, or the caller gives up.
func (q *queue) answer(ctx context.Context, asked *rate) error {
	now := time.Now()
	q.mu.Lock()
	asked.count(now)
	if q.away {
		q.mu.Unlock()
		return errRefused
	}
	if q.free.Before(now) {
		q.free = now
	}
	q.free = q.free.Add(q.takes)
	wait := q.free.Sub(now)
	if q.hangs {
		wait = q.timeout + 1
		q.free = now
	}
	q.mu.Unlock()

	timer := time.NewTimer(min(wait, q.timeout))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", issuer.Ended(ctx), ctx.Err())
	}
	if wait > q.timeout {
		return errSlow
	}
	return nil
}
