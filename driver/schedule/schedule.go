// Package schedule decides when a node asks an issuer for certificates: first ones
// at once, renewals when they are due, and both such that neither an outage of the
// CA, nor its end, nor a whole fleet that starts or restarts becomes a storm.
//
// What is asked for is not its business.
package schedule

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

const (
	// look is how often a line looks at the clock at least: a machine that was
	// suspended, or whose clock was set, is noticed by nothing else.
	look = time.Minute
	// missed is how late a renewal is that was not begun when it was due.
	missed = 2 * look
	// urgent is how much time is left of a certificate that waits for no other one.
	urgent = 2 * time.Minute
	// After an outage, or a sleep, all renewals that are due begin apart from each other, at
	// most so far, and such that all have begun after about so long. 5,000 nodes of
	// which each asks every 6 s ask 833 times a second, and one step-ca on two
	// cores gives 1,000.
	pace    = 6 * time.Second
	backlog = 8 * time.Minute
)

// ErrGone ends the renewal of a certificate.
var ErrGone = errors.New("the certificate is not needed any more")

// Line is what a node asks one issuer for. The zero value is of no use.
type Line struct {
	wake chan struct{} // something has changed

	mu       sync.Mutex
	places   places
	items    map[*Item]struct{}
	running  context.Context // nil before Run and after it
	renewing sync.WaitGroup

	// While the issuer is unavailable, one renewal at a time finds out whether it
	// still is.
	err      error
	failures int
	failed   time.Time // when the last one had failed
	jitter   float64   // of the pause after that, in [0, 1)

	// Once it answers again, what was missed is made up for, at a pace.
	recovering bool
	next       time.Time // when the next may begin
}

// NewLine makes a line that asks for nothing yet.
func NewLine() *Line {
	return &Line{
		wake:   make(chan struct{}, 1),
		places: places{limit: mostPlaces},
		items:  map[*Item]struct{}{},
	}
}

// Item is a certificate that is kept fresh. Its fields are the line's.
type Item struct {
	line  *Line
	renew func(context.Context) (renewal.Validity, error)

	validity renewal.Validity
	due      time.Time // by the wall clock
	retry    time.Time // not before that, after a failure of its own
	tried    time.Time
	failures int
	err      error
	stop     context.CancelFunc // of the renewal under way
	done     chan struct{}      // closed when that has ended
}

// State is what there is to say about an item.
type State struct {
	Validity renewal.Validity
	Next     time.Time // when its renewal is tried next
	Failures int       // in a row
	Err      error     // of the last one
}

// Publish does what asks for a first certificate, as soon as there is a place for
// it. It goes ahead of renewals.
func (l *Line) Publish(ctx context.Context, issue func(context.Context) error) (err error) {
	if err := l.enter(ctx); err != nil {
		return err
	}
	began := time.Now()
	defer func() { // also when it panics
		l.mu.Lock()
		l.heard(began, err, false)
		l.mu.Unlock()
		l.changed()
	}()
	return issue(ctx)
}

// Add keeps the certificate fresh: renew is called whenever it is due, and again
// when it failed, until Remove or until it returns ErrGone. Its context has no
// deadline.
func (l *Line) Add(v renewal.Validity, renew func(context.Context) (renewal.Validity, error)) *Item {
	i := &Item{line: l, renew: renew, validity: v, due: v.Due()}
	l.mu.Lock()
	l.items[i] = struct{}{}
	l.mu.Unlock()
	l.changed()
	return i
}

// Remove ends the item, after a renewal that is under way has ended.
func (l *Line) Remove(i *Item) {
	l.mu.Lock()
	delete(l.items, i)
	stop, done := i.stop, i.done
	l.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
}

// Renew makes the item due now.
func (i *Item) Renew() {
	i.line.mu.Lock()
	i.due, i.retry = time.Now().Round(0), time.Time{}
	i.line.mu.Unlock()
	i.line.changed()
}

// Token is called when there is a new token: an item that failed for want of one
// tries again at once.
func (i *Item) Token() {
	i.line.mu.Lock()
	missing := errors.Is(i.err, issuer.NoPodToken)
	if missing {
		i.retry = time.Time{}
	}
	i.line.mu.Unlock()
	if missing {
		i.line.changed()
	}
}

// State returns a snapshot.
func (i *Item) State() State {
	l, now := i.line, time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := State{Validity: i.validity, Next: i.due, Failures: i.failures, Err: i.err}
	if i.retry.After(s.Next) {
		s.Next = i.retry
	}
	if l.err != nil && i.isReady(now) {
		// It waits for the one that finds out.
		s.Err, s.Failures = l.err, max(i.failures, l.failures)
		s.Next = l.failed.Add(i.validity.Retry(l.failures, now, 0))
	}
	return s
}

func (l *Line) changed() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run begins renewals, until ctx ends and those under way have ended.
func (l *Line) Run(ctx context.Context) {
	l.mu.Lock()
	l.running = ctx
	l.recover() // what was missed while nobody ran
	l.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.mu.Lock()
		wait := l.step(time.Now())
		l.mu.Unlock()
		timer.Reset(min(wait, look))
		select {
		case <-timer.C:
		case <-l.wake:
		case <-ctx.Done():
		}
	}
	l.mu.Lock()
	l.running = nil
	l.mu.Unlock()
	l.renewing.Wait()
}

// begin renews the item.
func (l *Line) begin(i *Item, now time.Time) {
	ctx, stop := context.WithCancel(l.running)
	i.stop, i.done, i.tried = stop, make(chan struct{}), now
	l.places.calls++
	l.places.renewals++
	l.renewing.Go(func() {
		defer close(i.done)
		defer stop()
		validity, err := i.renew(ctx)
		l.mu.Lock()
		l.places.renewals--
		l.heard(now, err, true)
		l.ended(i, validity, err, ctx.Err() != nil)
		l.mu.Unlock()
		l.changed()
	})
}

// ended is for a renewal that has.
func (l *Line) ended(i *Item, v renewal.Validity, err error, stopped bool) {
	i.stop = nil
	now := time.Now()
	switch {
	case err == nil:
		i.validity, i.due, i.retry, i.failures, i.err = v, v.Due(), time.Time{}, 0, nil
	case errors.Is(err, ErrGone):
		delete(l.items, i)
	case stopped:
	default:
		i.failures, i.err = i.failures+1, err
		if !isUnavailable(err) { // else the line decides when
			i.retry = now.Add(i.validity.Retry(i.failures, now, rand.Float64()))
		}
	}
}

// heard is for any call that has ended: it tells whether the issuer answers. While
// it does not, first certificates, which the kubelet asks for at its own pace, do
// not put off what finds out: one of them may fail for a reason of its own.
func (l *Line) heard(began time.Time, err error, isRenewal bool) {
	now, unavailable := time.Now(), isUnavailable(err)
	l.places.left(began, now, unavailable)
	switch {
	case err == nil && l.err != nil:
		l.err, l.failures = nil, 0
		l.recover()
	case unavailable && (l.err == nil || isRenewal && began.After(l.failed)):
		// Of those that began together, one counts.
		l.err, l.failed, l.jitter = err, now, rand.Float64()
		l.failures++
	}
}

// isUnavailable tells whether the issuer did not answer, whoever asks.
func isUnavailable(err error) bool {
	if errors.Is(err, issuer.NoPodToken) {
		return false
	}
	return errors.Is(err, issuer.Unavailable) || errors.Is(err, context.DeadlineExceeded)
}
