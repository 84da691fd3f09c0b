// Package schedule decides when a process calls an issuer: at once for first certificates,
// and when they are due for renewals. It prevents storms of calls during an outage of
// the CA, after the outage, and when a whole fleet starts.
//
// A Limiter limits the concurrent calls, a Breaker stops renewals while the issuer is
// down, a Queue holds the due times, and a Backlog serves due entries fairly. A pod that is
// over its rate limit at the issuer backs off with all its certificates. The callers
// supply the calls.
package schedule

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/fair"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/renewal"
)

const (
	// clockCheck is the longest interval between two checks of the wall clock. Timers do
	// not notice that the machine was suspended or the clock was set.
	clockCheck = time.Minute
	// mostRenewals limits the renewals that are in progress or wait for the limiter.
	mostRenewals = mostCalls / 2
	// urgentTime is the time to expiry at which a certificate no longer waits for its
	// turn, or an eighth of its window if that is less.
	urgentTime = 2 * time.Minute
	// Renewals of a backlog start at most pace apart, and all of them start within about
	// backlogTime. 5,000 nodes that each renew every 6 s make 833 calls a second, and one
	// step-ca on two cores answers 1,000.
	pace        = 6 * time.Second
	backlogTime = 8 * time.Minute
	// leastInterval is the shortest time between two renewals of one certificate, even if
	// the CA issues it for a shorter lifetime.
	leastInterval = time.Second
)

var (
	// ErrGone ends the renewals of the entry whose renewal returns it.
	ErrGone = errors.New("the certificate is not needed any more")
	// ErrLimited means that a renewal succeeded, but the new certificate works no longer than
	// the one before, because of a certificate of the CA. The entry counts as failing. Its
	// next renewal is at the usual time in what is left, and at least MinInterval later: more
	// renewals would not help.
	ErrLimited = errors.New("the new certificate works no longer than the one before")
)

// Scheduler makes the calls of a node to one issuer.
type Scheduler struct {
	limiter *Limiter
	wake    chan struct{} // something changed

	mu        sync.Mutex
	breaker   Breaker
	waiting   Queue   // entries that are not due, or wait for their own retry
	backlog   Backlog // entries that are due
	throttled throttles
	urgent    Queue               // the due entries, by the time when they become urgent; without expired ones
	renewing  map[*Entry]struct{} // renewals in progress
	heartbeat time.Time           // when Run last looked for renewals; zero before Run
	running   context.Context
	ending    sync.WaitGroup
	began     time.Time // when the last renewal of the backlog started; zero once the backlog is empty
	jitter    float64   // of the pause before the next renewal
	jumped    bool      // the last renewal was urgent, and did not wait for its turn
}

// New makes a scheduler. Renewals start with Run.
func New() *Scheduler {
	return &Scheduler{limiter: NewLimiter(), wake: make(chan struct{}, 1), renewing: map[*Entry]struct{}{}}
}

// Entry is a certificate to renew. The scheduler's lock guards its fields.
type Entry struct {
	scheduler *Scheduler
	pod       string
	renew     func(context.Context) (renewal.Validity, error)

	validity renewal.Validity
	due      time.Time // by the wall clock
	retry    time.Time // after its own failure, not one of the issuer
	began    time.Time // when the last renewal started
	failures int
	err      error // of the last renewal

	inWaiting, inBacklog, inUrgent *element
	cancel                         context.CancelFunc // of the renewal in progress
	done                           chan struct{}      // closed when the renewal has ended
}

// State is a snapshot of an entry.
type State struct {
	Validity renewal.Validity
	Next     time.Time // when the next renewal starts
	Failures int       // in a row
	Err      error     // of the last renewal
}

// Call makes a call to the issuer for the pod as soon as the limiter admits it, and
// reports the outcome to the limiter and the breaker.
func (s *Scheduler) Call(ctx context.Context, p Priority, pod fair.Owner, call func(context.Context) error) (err error) {
	release, err := s.limiter.Acquire(ctx, p, pod)
	if err != nil {
		return err
	}
	began := time.Now()
	err = issuer.Failed // stays if the call panics
	defer func() {
		release(issuer.OutcomeOf(err))
		s.mu.Lock()
		if s.breaker.Observe(p, began, time.Now(), err) {
			s.pause()
		}
		s.mu.Unlock()
		s.changed()
	}()
	err = call(ctx)
	return err
}

// Waiting returns the number of calls for first certificates that wait for the limiter.
func (s *Scheduler) Waiting() int { return s.limiter.Waiting(Publish) }

// Add starts to renew a certificate of the pod. The scheduler calls renew whenever the
// certificate is due, and again after a failure, until Remove or until renew returns
// ErrGone. The context of renew has no deadline. renew must make its calls through Call.
func (s *Scheduler) Add(pod string, v renewal.Validity, renew func(context.Context) (renewal.Validity, error)) *Entry {
	e := &Entry{scheduler: s, pod: pod, renew: renew, validity: v, due: v.Due()}
	s.mu.Lock()
	s.enqueue(e)
	s.mu.Unlock()
	s.changed()
	return e
}

// Remove ends the renewals of the entry, and waits for a renewal in progress.
func (s *Scheduler) Remove(e *Entry) {
	s.mu.Lock()
	s.dequeue(e)
	e.renew = nil
	cancel, done := e.cancel, e.done
	s.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// RenewNow makes the entry due.
func (e *Entry) RenewNow() {
	e.update(func() { e.due, e.retry = time.Now().Round(0), time.Time{} })
}

// RenewEarly makes the entry due as soon as its MinInterval allows.
func (e *Entry) RenewEarly() {
	e.update(func() {
		now := time.Now().Round(0)
		if earliest := e.validity.Earliest(); earliest.After(now) {
			now = earliest
		}
		if now.Before(e.due) {
			e.due = now
		}
		if errors.Is(e.err, ErrLimited) {
			e.retry = time.Time{}
		}
	})
}

// Change replaces the validity of the certificate: without a renewal, the certificate works
// for another time now.
func (e *Entry) Change(v renewal.Validity) { e.update(func() { e.validity, e.due = v, v.Due() }) }

// TokenArrived makes an entry retry at once if it failed without a token of its pod.
func (e *Entry) TokenArrived() {
	e.update(func() {
		if issuer.OutcomeOf(e.err) == issuer.NoPodToken {
			e.retry = time.Time{}
		}
	})
}

func (e *Entry) update(change func()) {
	s := e.scheduler
	s.mu.Lock()
	change()
	if e.cancel == nil && e.renew != nil {
		s.dequeue(e)
		s.enqueue(e)
	}
	s.mu.Unlock()
	s.changed()
}

// State returns a snapshot. While the issuer is down, a due entry has the error of the
// last probe.
func (e *Entry) State() State {
	s, now := e.scheduler, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	state := State{Validity: e.validity, Next: s.next(e), Failures: e.failures, Err: e.err}
	if b := s.breaker; b.IsOpen() && e.cancel == nil && !now.Before(state.Next) {
		state.Err, state.Failures, state.Next = b.err, max(e.failures, b.failures), b.ProbeAt(e.validity, now)
	}
	return state
}

// next returns when the entry may be renewed, as far as its pod is concerned.
func (s *Scheduler) next(e *Entry) time.Time {
	at := e.due
	for _, other := range []time.Time{e.retry, s.throttled.until(e.pod, e.validity)} {
		if other.After(at) {
			at = other
		}
	}
	return at
}

// enqueue puts the entry into the queues that its times require.
func (s *Scheduler) enqueue(e *Entry) {
	at := s.next(e)
	if at.After(time.Now()) {
		e.inWaiting = s.waiting.add(e, at)
		return
	}
	e.inBacklog = s.backlog.add(e)
	e.inUrgent = s.urgent.add(e, e.validity.NotAfter.Add(-min(urgentTime, e.validity.Window()/8)))
}

func (s *Scheduler) dequeue(e *Entry) {
	s.waiting.remove(e.inWaiting)
	s.backlog.remove(e.inBacklog)
	s.urgent.remove(e.inUrgent)
}

func (s *Scheduler) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// pause delays the next renewal of the backlog by a random part of the gap, because
// other nodes start at the same moment.
func (s *Scheduler) pause() { s.began, s.jitter = time.Now(), rand.Float64() }

// Run starts renewals until ctx ends. Then it waits for the renewals in progress.
func (s *Scheduler) Run(ctx context.Context) {
	s.mu.Lock()
	s.running, s.heartbeat = ctx, time.Now()
	s.pause()
	s.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		s.mu.Lock()
		s.heartbeat = time.Now()
		next := s.step(s.heartbeat)
		s.mu.Unlock()
		timer.Reset(min(time.Until(next), clockCheck))
		select {
		case <-timer.C:
		case <-s.wake:
		case <-ctx.Done():
		}
	}
	s.ending.Wait()
}

// step starts the renewals that may start now, and returns when to run again.
func (s *Scheduler) step(now time.Time) (next time.Time) {
	for first := s.waiting.first(); first != nil && !first.at.After(now); first = s.waiting.first() {
		s.waiting.remove(first)
		s.enqueue(first.entry)
	}
	next = now.Add(clockCheck)
	if first := s.waiting.first(); first != nil && first.at.Before(next) {
		next = first.at
	}
	for {
		e, at := s.candidate(now)
		switch {
		case e == nil:
			return next
		case at.After(now):
			if at.Before(next) {
				next = at
			}
			return next
		}
		s.jumped = !s.jumped && e != s.backlog.next(now)
		s.begin(e, now)
	}
}

// candidate returns the next entry to renew, and when. Urgent entries come first, but not
// twice in a row. It returns nil if no entry is due,
// or if a renewal in progress must end first.
func (s *Scheduler) candidate(now time.Time) (*Entry, time.Time) {
	// An expired certificate is no longer urgent: it waits for its turn.
	for first := s.urgent.first(); first != nil && !now.Before(first.entry.validity.NotAfter); first = s.urgent.first() {
		s.urgent.remove(first)
	}
	turn, urgent := s.backlog.next(now), s.urgent.first()
	switch {
	case turn == nil: // the next due entry starts at once
		s.began = time.Time{}
		return nil, now
	case len(s.renewing) >= mostRenewals:
		return nil, now
	case s.breaker.IsOpen() && len(s.renewing) > 0: // the probe is in progress
		return nil, now
	case s.breaker.IsOpen() && urgent != nil:
		// The most urgent certificate decides when. If it is not urgent yet, the probe
		// renews the next entry in turn, so that every entry gets a probe.
		at := s.breaker.ProbeAt(urgent.entry.validity, now)
		if !urgent.at.After(now) {
			turn = urgent.entry
		}
		return turn, at
	case s.breaker.IsOpen():
		return turn, s.breaker.ProbeAt(turn.validity, now)
	}
	at := s.began.Add(time.Duration(s.jitter * float64(s.gap(turn))))
	switch {
	case urgent == nil || !urgent.at.Before(at):
		return turn, at
	case s.jumped: // urgent certificates of some pods do not take all turns
		return turn, urgent.at
	}
	return urgent.entry, urgent.at
}

// gap returns the mean time between two renewals of the backlog.
func (s *Scheduler) gap(turn *Entry) time.Duration {
	return min(pace, min(backlogTime, turn.validity.Window()/8)/time.Duration(s.backlog.size))
}

// begin starts a renewal of the entry.
func (s *Scheduler) begin(e *Entry, now time.Time) {
	s.dequeue(e)
	s.began, s.jitter = now, 0.5+rand.Float64()
	e.began = now
	ctx, cancel := context.WithCancel(s.running)
	e.cancel, e.done = cancel, make(chan struct{})
	s.renewing[e] = struct{}{}
	renew := e.renew
	s.ending.Go(func() {
		defer close(e.done)
		defer cancel()
		validity, err := func() (v renewal.Validity, err error) {
			defer panics.Recover(ctx, "renewal", &err)
			return renew(ctx)
		}()
		s.mu.Lock()
		s.end(e, validity, err, ctx.Err() != nil)
		s.mu.Unlock()
		s.changed()
	})
}

// end records the result of a renewal.
func (s *Scheduler) end(e *Entry, v renewal.Validity, err error, stopped bool) {
	delete(s.renewing, e)
	e.cancel = nil
	now := time.Now()
	switch {
	case err == nil:
		e.validity, e.due, e.retry, e.failures, e.err = v, v.Due(), now.Add(leastInterval), 0, nil
		s.throttled.served(e.pod)
	case errors.Is(err, ErrLimited) && e.renew != nil:
		e.validity, e.due, e.retry = v, v.Due(), now.Add(max(v.MinInterval, leastInterval))
		e.failures, e.err = e.failures+1, err
		s.throttled.served(e.pod)
	case errors.Is(err, ErrGone) || e.renew == nil:
		e.renew = nil
		return
	case stopped:
		return
	default:
		if !v.NotAfter.IsZero() {
			e.validity = v // a failure after the new certificate was written
		}
		e.failures, e.err = e.failures+1, err
		e.retry = now.Add(e.validity.Retry(e.failures, now, rand.Float64()))
		if issuer.OutcomeOf(err).IsDown() && s.breaker.IsOpen() {
			e.retry = time.Time{} // the breaker decides when
		}
		if issuer.OutcomeOf(err) == issuer.Throttled {
			e.retry = time.Time{} // the throttle of the pod decides when
			s.throttled.rejected(e.pod, e.began, now)
			for _, other := range s.backlog.of(e.pod) {
				s.dequeue(other)
				s.enqueue(other)
			}
		}
	}
	if e.renew != nil {
		s.enqueue(e)
	}
}
