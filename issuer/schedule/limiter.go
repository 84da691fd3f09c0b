package schedule

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/fair"
)

// Priority is the purpose of a call to the issuer.
type Priority int

// The priorities, the highest first.
const (
	Publish Priority = iota // a pod waits for its first certificate
	Renewal                 // a mounted certificate is due
)

const (
	// mostCalls is the highest limit. step-ca on two cores reaches its full rate with
	// about this many concurrent calls.
	mostCalls = 64
	// slowCall is the duration from which a call means that the issuer is overloaded. It
	// is well below the caller's timeout: a call that times out costs the CA as much, and
	// its certificate is lost.
	slowCall = 5 * time.Second
	// callTime is how long before its deadline a call must start.
	callTime = 20 * time.Second
)

// Limiter limits the concurrent calls to one issuer, by additive increase and
// multiplicative decrease (AIMD). Without a limit, nodes of a large cluster that start
// their pods at the same time send more calls than the CA can answer in time, and no
// call succeeds. The Limiter measures only the call, not the work before and after it.
type Limiter struct {
	mu      sync.Mutex
	limit   int
	calls   [2]int        // in progress, by priority
	waiting [2]fair.Queue // by priority
	lowered time.Time     // when the limit was last lowered
}

// NewLimiter makes a limiter that starts with the limit mostCalls.
func NewLimiter() *Limiter { return &Limiter{limit: mostCalls} }

// Waiting returns the number of calls that wait to start.
func (l *Limiter) Waiting(p Priority) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting[p].Len()
}

// Acquire waits until the call may start. The pods have turns. It gives up well before the deadline: a call
// that starts too late times out and loads the issuer for nothing. The caller must call
// release once, with the call's outcome.
func (l *Limiter) Acquire(ctx context.Context, p Priority, pod fair.Owner) (release func(issuer.Outcome), err error) {
	if deadline, ok := ctx.Deadline(); ok {
		reserved := min(callTime, time.Until(deadline)/2)
		limited, cancel := context.WithDeadline(ctx, deadline.Add(-reserved))
		defer cancel()
		ctx = limited
	}
	l.mu.Lock()
	ticket := l.waiting[p].Add(pod)
	l.admit()
	l.mu.Unlock()
	select {
	case <-ticket.Turn:
		began := time.Now()
		return func(o issuer.Outcome) { l.release(p, began, o) }, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.waiting[p].Remove(ticket) { // admitted at the same moment
		l.calls[p]--
		l.admit()
	}
	return nil, issuer.Ended(ctx).Because(fmt.Errorf("wait for other calls to the issuer: %w", ctx.Err()))
}

// admit starts waiting calls. Publishes go first, and never wait for renewals,
// which may hang. Renewals take at most half of the limit. One renewal may always start,
// because an expiring certificate cannot wait until all pods have started.
func (l *Limiter) admit() {
	for l.calls[Publish] < l.limit && l.begin(Publish) {
	}
	for l.renewalMayBegin() && l.begin(Renewal) {
	}
}

func (l *Limiter) renewalMayBegin() bool {
	return l.calls[Renewal] == 0 ||
		l.waiting[Publish].Len() == 0 && l.calls[Publish]+l.calls[Renewal] < l.limit && l.calls[Renewal] < l.limit/2
}

// begin starts the next waiting call, and tells whether there was one.
func (l *Limiter) begin(p Priority) bool {
	_, ok := l.waiting[p].Next(nil)
	if ok {
		l.calls[p]++
	}
	return ok
}

// release ends a call and adjusts the limit. Only answers, missing answers and their
// durations show the load of the issuer.
func (l *Limiter) release(p Priority, began time.Time, o issuer.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[p]--
	now := time.Now()
	switch slow := now.Sub(began) >= slowCall; {
	case o.Answered() && !slow:
		l.limit = min(l.limit+1, mostCalls)
	// Calls that started before the limit was lowered do not lower it again.
	case (o.Answered() || o == issuer.Unavailable) && began.After(l.lowered):
		l.limit, l.lowered = max(1, min(l.limit, l.calls[Publish]+l.calls[Renewal]+1)/2), now
	}
	l.admit()
}
