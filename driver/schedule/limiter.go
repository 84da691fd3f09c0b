package schedule

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// Priority is what a call to the issuer is for.
type Priority int

// The priorities, the more important first.
const (
	Publish Priority = iota // a pod waits for its first certificate
	Renewal                 // a certificate is due, and still valid
)

const (
	// mostCalls is the highest limit. step-ca reaches its full rate on two cores with
	// about as many concurrent calls.
	mostCalls = 64
	// slowCall is how long a call takes at an issuer that is overloaded. It is well
	// below the time after which a caller gives up: such a call costs the CA as much,
	// and its certificate is lost.
	slowCall = 5 * time.Second
	// callTime is the time that a call must have left when it begins.
	callTime = 20 * time.Second
)

// Limiter bounds the concurrent calls to one issuer, by additive increase and
// multiplicative decrease (AIMD): without that, the nodes of a large cluster that
// start their pods at the same time ask for more than the CA can answer in time,
// and no call succeeds any more. It measures the call alone, not the work before
// and after it.
type Limiter struct {
	mu      sync.Mutex
	limit   int
	calls   [2]int       // under way, by priority
	waiting [2]list.List // of chan struct{}, by priority, in order of arrival
	lowered time.Time    // when the limit was last lowered
}

// NewLimiter makes a limiter that allows mostCalls at first.
func NewLimiter() *Limiter { return &Limiter{limit: mostCalls} }

// Waiting is the number of calls that wait to begin.
func (l *Limiter) Waiting(p Priority) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting[p].Len()
}

// Acquire waits until the call may begin. It gives up while there is still time for
// a call: one that begins too late is abandoned before its answer, for nothing. The
// caller calls release once, with the call's outcome.
func (l *Limiter) Acquire(ctx context.Context, p Priority) (release func(issuer.Outcome), err error) {
	if deadline, ok := ctx.Deadline(); ok {
		reserved := min(callTime, time.Until(deadline)/2)
		limited, cancel := context.WithDeadline(ctx, deadline.Add(-reserved))
		defer cancel()
		ctx = limited
	}
	turn := make(chan struct{})
	l.mu.Lock()
	place := l.waiting[p].PushBack(turn)
	l.admit()
	l.mu.Unlock()
	select {
	case <-turn:
		began := time.Now()
		return func(o issuer.Outcome) { l.release(p, began, o) }, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-turn: // at the same moment
		l.calls[p]--
		l.admit()
	default:
		l.waiting[p].Remove(place)
	}
	return nil, fmt.Errorf("%w: wait for other calls to the issuer: %w", issuer.Ended(ctx), ctx.Err())
}

// admit begins waiting calls in their order. Publishes go first, and never wait for
// renewals, which may hang. Renewals take at most half of the calls; but one may
// always begin, since a certificate that expires cannot wait for the last pod.
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

// begin begins the first waiting call, and tells whether there was one.
func (l *Limiter) begin(p Priority) bool {
	first := l.waiting[p].Front()
	if first == nil {
		return false
	}
	close(l.waiting[p].Remove(first).(chan struct{}))
	l.calls[p]++
	return true
}

// release ends a call. Only an answer, a missing answer, and how long they took say
// anything about the load of the issuer.
func (l *Limiter) release(p Priority, began time.Time, o issuer.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[p]--
	now := time.Now()
	switch slow := now.Sub(began) >= slowCall; {
	case o.Answered() && !slow:
		l.limit = min(l.limit+1, mostCalls)
	// Calls that began before the limit was lowered tell nothing new.
	case (o.Answered() || o == issuer.Unavailable) && began.After(l.lowered):
		l.limit, l.lowered = max(1, min(l.limit, l.calls[Publish]+l.calls[Renewal]+1)/2), now
	}
	l.admit()
}
