package schedule

import (
	"context"
	"slices"
	"time"
)

const (
	// mostPlaces bounds the calls at a time. step-ca reaches its full rate on two
	// cores with about as many.
	mostPlaces = 64
	// slow is a call that took so long that the CA has more to do than it can. It is
	// well below the time after which a call is given up: what is answered later
	// than that has cost the CA as much, for nothing.
	slow = 5 * time.Second
	// answer is what a call is given to be answered in.
	answer = 20 * time.Second
)

// places bounds the calls to an issuer. There are less of them while the CA is
// slow, down to one: else the nodes of a large cluster, all starting their pods at
// once, ask for more than the CA answers in time, and it answers nobody any more.
// It is used with the line's lock held.
type places struct {
	limit    int
	calls    int
	renewals int       // of the calls
	cut      time.Time // when the limit was last lowered
	waiting  []chan struct{}
}

// admit lets in first certificates, in their order. One need not wait for renewals,
// which may hang at a CA that answers again.
func (p *places) admit() {
	for len(p.waiting) > 0 && (p.calls < p.limit || p.calls == p.renewals) {
		close(p.waiting[0])
		p.waiting = p.waiting[1:]
		p.calls++
	}
}

// forRenewal tells whether a renewal may begin. Renewals, which have time, take at
// most half of the places, and none that a pod waits for. But one that is urgent
// need not wait for the last pod to start.
func (p *places) forRenewal(urgent bool) bool {
	if urgent && p.renewals == 0 {
		return true
	}
	return len(p.waiting) == 0 && p.calls < p.limit && p.renewals < max(1, p.limit/2)
}

// left is for a call that has ended.
func (p *places) left(began, now time.Time, unavailable bool) {
	p.calls--
	switch {
	case !unavailable && now.Sub(began) < slow:
		p.limit = min(p.limit+1, mostPlaces)
	case began.After(p.cut): // the others of before tell nothing new
		p.limit, p.cut = max(1, min(p.limit, p.calls+1)/2), now
	}
	p.admit()
}

// enter waits for a place for a first certificate, as long as there is time for the
// call after it. One that is begun too late is given up before its answer, and the
// CA works for nobody: if all nodes do so, for good.
func (l *Line) enter(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok {
		reserve := min(answer, time.Until(deadline)/2)
		limited, cancel := context.WithDeadline(ctx, deadline.Add(-reserve))
		defer cancel()
		ctx = limited
	}
	turn := make(chan struct{})
	l.mu.Lock()
	l.places.waiting = append(l.places.waiting, turn)
	l.places.admit()
	l.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.places.waiting, turn); i >= 0 {
		l.places.waiting = slices.Delete(l.places.waiting, i, i+1)
	} else { // its turn came at the same moment
		l.places.calls--
		l.places.admit()
	}
	return ctx.Err()
}
