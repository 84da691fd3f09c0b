package schedule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/renewal"
)

const day = 24 * time.Hour

var errAway = fmt.Errorf("%w: no route to host", issuer.Unavailable)

// node is a scheduler with certificates, in virtual time. It records the calls to
// the CA.
type node struct {
	*Scheduler
	t    *testing.T
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	away    error // the CA's error; nil if it signs
	takes   time.Duration
	asked   []call
	entries map[string]*Entry
}

type call struct {
	name string
	at   time.Time
}

// virtually runs the test in virtual time, with a running scheduler.
func virtually(t *testing.T, test func(n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := &node{Scheduler: New(), t: t, entries: map[string]*Entry{}}
		n.start()
		test(n)
		n.end()
	})
}

func (n *node) start() {
	ctx, stop := context.WithCancel(n.t.Context())
	n.stop, n.done = stop, make(chan struct{})
	scheduler := n.Scheduler
	go func() {
		defer close(n.done)
		scheduler.Run(ctx)
	}()
	synctest.Wait()
}

func (n *node) end() {
	n.stop()
	<-n.done
}

// ask calls the CA through the scheduler. Its errors look like those of an issuer.
func (n *node) ask(ctx context.Context, p Priority, name string) error {
	return n.Call(ctx, p, somePod, func(ctx context.Context) error { return n.answer(ctx, name) })
}

func (n *node) answer(ctx context.Context, name string) error {
	n.mu.Lock()
	n.asked = append(n.asked, call{name, time.Now()})
	takes, err := n.takes, n.away
	n.mu.Unlock()
	select {
	case <-time.After(takes):
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", issuer.Ended(ctx), ctx.Err())
	}
}

func issuedAt(at time.Time, lifetime time.Duration, name string) renewal.Validity {
	return renewal.Validity{Issued: at, NotAfter: at.Add(lifetime), Spread: renewal.SpreadOf(name)}
}

// keep adds a certificate with that validity, for its own pod. Renewed certificates
// have the same lifetime.
func (n *node) keep(name string, v renewal.Validity) *Entry { return n.keepOf(name, name, v) }

func (n *node) keepOf(pod, name string, v renewal.Validity) *Entry {
	lifetime := v.NotAfter.Sub(v.Issued)
	i := n.Add(pod, v, func(ctx context.Context) (renewal.Validity, error) {
		err := n.ask(ctx, Renewal, name)
		return issuedAt(time.Now(), lifetime, name), err
	})
	n.entries[name] = i
	return i
}

func (n *node) answers(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away = err
}

// calls returns the recorded calls and clears the record.
func (n *node) calls() []call {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	calls := n.asked
	n.asked = nil
	return calls
}

func names(calls []call) []string {
	var all []string
	for _, c := range calls {
		all = append(all, c.name)
	}
	return all
}

// mostWithin is the largest number of calls in any window of this length.
func mostWithin(calls []call, window time.Duration) int {
	most := 0
	for first, c := range calls {
		last := slices.IndexFunc(calls[first:], func(other call) bool { return other.at.Sub(c.at) >= window })
		if last < 0 {
			last = len(calls) - first
		}
		most = max(most, last)
	}
	return most
}

func TestRenewsInTime(t *testing.T) {
	virtually(t, func(n *node) {
		i := n.keep("a", issuedAt(time.Now(), day, "a"))
		for range 30 * 24 {
			time.Sleep(time.Hour)
			if left := time.Until(i.State().Validity.NotAfter); left < 6*time.Hour {
				t.Errorf("the certificate has only %s left", left)
			}
		}
		if calls := len(n.calls()); calls < 39 || calls > 51 {
			t.Errorf("%d renewals in 30 days", calls)
		}
	})
}

// Certificates that were issued together are not renewed together.
func TestRenewalsAreSpread(t *testing.T) {
	virtually(t, func(n *node) {
		for i := range 110 {
			name := fmt.Sprint(i)
			n.keep(name, issuedAt(time.Now(), day, name))
		}
		time.Sleep(20 * time.Hour)
		calls := n.calls()
		if most := mostWithin(calls, time.Minute); len(calls) != 110 || most > 8 {
			t.Errorf("%d calls, %d in a minute", len(calls), most)
		}
	})
}

// A restarted plugin renews at the same times as before.
func TestRestartKeepsTheSpread(t *testing.T) {
	virtually(t, func(n *node) {
		begin := time.Now()
		for i := range 110 {
			name := fmt.Sprint(i)
			n.keep(name, issuedAt(begin, day, name))
		}
		time.Sleep(15*time.Hour + 30*time.Minute)
		before := n.calls()
		n.end()
		entries := n.entries
		n.Scheduler = New()
		for _, name := range slices.Sorted(maps.Keys(entries)) {
			n.keep(name, entries[name].State().Validity)
		}
		n.start()
		time.Sleep(time.Minute)
		if after := n.calls(); len(before) < 20 || len(after) > 4 {
			t.Errorf("%d renewals before the restart, %d in the minute after it", len(before), len(after))
		}
	})
}

func TestOutage(t *testing.T) {
	for name, outage := range map[string]time.Duration{"of an hour": time.Hour, "of ten hours": 10 * time.Hour, "longer than a lifetime": 40 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(n *node) {
				begin := time.Now()
				for i := range 110 { // certificates of all ages
					name := fmt.Sprint(i)
					n.keep(name, issuedAt(begin.Add(-time.Duration(i)*14*time.Hour/110), day, name))
				}
				time.Sleep(15 * time.Hour)
				n.calls()
				n.answers(errAway)
				time.Sleep(outage)
				during := n.calls()
				// A certificate that is about to expire is retried more often, but at most
				// 80 times in its last 40 minutes.
				if most := mostWithin(during, time.Minute); most > 90 {
					t.Errorf("%d calls in a minute", most)
				}
				if least := int(outage / renewal.SlowestRetry); len(during) < least {
					t.Errorf("%d calls, want at least %d", len(during), least)
				}
				expiring := map[string]time.Time{}
				now := time.Now()
				for name, i := range n.entries {
					s := i.State()
					if !s.Validity.Due().After(now.Add(-5*time.Minute)) && (s.Err == nil || s.Failures == 0 || s.Next.Sub(now) > renewal.SlowestRetry) {
						t.Errorf("%s is due, but its state is %+v", name, s)
					}
					if s.Validity.NotAfter.After(now) {
						expiring[name] = s.Validity.NotAfter
					}
				}
				n.answers(nil)
				time.Sleep(16 * time.Minute)
				n.settled()
				if calls := n.calls(); len(calls) > 0 && calls[0].at.Sub(now) > renewal.SlowestRetry {
					t.Errorf("the first call came only %s after the outage", calls[0].at.Sub(now))
				} else if most := mostWithin(calls, time.Minute); most > 35 {
					t.Errorf("%d calls in a minute after the outage", most)
				}
				for name, at := range expiring {
					if v := n.entries[name].State().Validity; v.NotAfter.Equal(at) && time.Now().After(at) {
						t.Errorf("%s expired %s after the outage", name, at.Sub(now))
					}
				}
			})
		})
	}
}

// settled fails the test if a certificate is overdue.
func (n *node) settled() {
	n.t.Helper()
	for name, i := range n.entries {
		if s := i.State(); s.Err != nil || s.Failures != 0 || time.Since(s.Validity.Due()) > time.Second {
			n.t.Errorf("%s: overdue for %s, after %d failures: %v", name, time.Since(s.Validity.Due()), s.Failures, s.Err)
		}
	}
}

// After a late start or an outage, the scheduler first renews the certificates that
// are about to expire, and then the expired ones.
func TestMostUrgentFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{Scheduler: New(), t: t, entries: map[string]*Entry{}}
		now := time.Now()
		for name, left := range map[string]time.Duration{
			"2 long expired": -5 * time.Hour, "3 expired": -time.Minute, "1 about to": 30 * time.Second,
			"4 soon": 10 * time.Minute, "5 overdue": 6 * time.Hour, "6 not due": 12 * time.Hour,
		} {
			n.keep(name, issuedAt(now.Add(left-day), day, name))
		}
		n.start()
		time.Sleep(2 * time.Minute)
		calls := n.calls()
		want := []string{"1 about to", "2 long expired", "3 expired", "4 soon", "5 overdue"}
		if got := names(calls); !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		} else if calls[0].at.Sub(now) > 0 || calls[4].at.Sub(now) > time.Minute {
			t.Errorf("the first after %s, the last after %s", calls[0].at.Sub(now), calls[4].at.Sub(now))
		}
		n.end()
	})
}

// A certificate whose renewal always fails does not delay the others, whatever the
// error.
func TestFailingCertificateDoesNotDelayOthers(t *testing.T) {
	for name, err := range map[string]error{"denied": issuer.Denied, "500": errAway} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(n *node) {
				begin := time.Now()
				for i := range 20 {
					name := fmt.Sprint(i)
					n.keep(name, issuedAt(time.Now(), day, name))
				}
				n.Add("bad", issuedAt(time.Now(), day, "19"), func(ctx context.Context) (renewal.Validity, error) {
					v := issuedAt(begin, day, "19")
					return v, n.Call(ctx, Renewal, somePod, func(ctx context.Context) error {
						return errors.Join(n.answer(ctx, "bad"), err)
					})
				})
				time.Sleep(18 * time.Hour)
				n.settled()
				bad := 0
				for _, name := range names(n.calls()) {
					if name == "bad" {
						bad++
					}
				}
				if bad < 10 || bad > 120 {
					t.Errorf("%d attempts for the failing certificate", bad)
				}
			})
		})
	}
}

// A renewal without a pod token keeps retrying, and runs as soon as a token arrives.
// The missing token says nothing about the CA.
func TestWaitsForAToken(t *testing.T) {
	virtually(t, func(n *node) {
		i := n.keep("a", issuedAt(time.Now(), 3*time.Hour, "other"))
		n.answers(fmt.Errorf("%w: expired", issuer.NoPodToken))
		time.Sleep(2*time.Hour + 30*time.Minute)
		if calls := len(n.calls()); calls < 4 || calls > 60 {
			t.Errorf("%d attempts without a token", calls)
		}
		if s := i.State(); !errors.Is(s.Err, issuer.NoPodToken) {
			t.Errorf("the state's error is %v", s.Err)
		}
		n.answers(nil)
		i.TokenArrived()
		time.Sleep(2 * pace)
		if got := names(n.calls()); !slices.Equal(got, []string{"a"}) {
			t.Errorf("after the token arrived, the calls were %q", got)
		}
	})
}

func TestFirstCertificatesGoAheadOfTheBacklog(t *testing.T) {
	virtually(t, func(n *node) {
		begin := time.Now()
		for i := range 110 {
			name := fmt.Sprint(i)
			n.keep(name, issuedAt(begin.Add(-time.Minute), 10*time.Minute, name))
		}
		n.answers(errAway)
		time.Sleep(30 * time.Minute)
		n.answers(nil)
		n.mu.Lock()
		n.takes = time.Second
		n.mu.Unlock()
		n.calls()
		for i := range 5 {
			if err := n.ask(n.t.Context(), Publish, "pod"); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin.Add(30 * time.Minute)); took > time.Duration(i+1)*time.Second {
				t.Errorf("pod %d started after %s", i, took)
			}
		}
	})
}

// Publishes that keep failing do not postpone the renewals.
func TestFailingPublishesDoNotPostponeRenewals(t *testing.T) {
	virtually(t, func(n *node) {
		n.keep("a", issuedAt(time.Now(), day, "a"))
		for range 20 * 60 * 30 {
			_ = n.Call(n.t.Context(), Publish, somePod, func(context.Context) error { return errAway })
			time.Sleep(2 * time.Second)
		}
		if calls := n.calls(); len(calls) == 0 {
			t.Error("the certificate was not renewed")
		}
	})
}

// moveDue changes when the entries are due, like a jump of the clock: nothing wakes
// the scheduler.
func (n *node) moveDue(due time.Time) {
	n.Scheduler.mu.Lock()
	defer n.Scheduler.mu.Unlock()
	for _, e := range n.entries {
		n.dequeue(e)
		e.due = due
		e.inWaiting = n.waiting.add(e, due)
	}
}

// The scheduler notices a jump of the clock within a minute. A suspended machine
// causes one too: the wall clock advances, but timers do not.
func TestSleepsNoLongerThanAMinute(t *testing.T) {
	virtually(t, func(n *node) {
		n.keep("a", issuedAt(time.Now(), day, "a"))
		time.Sleep(time.Hour)
		n.moveDue(time.Now())
		time.Sleep(time.Minute)
		if calls := n.calls(); len(calls) != 1 {
			t.Errorf("%d renewals, want 1", len(calls))
		}
	})
}

// After the machine was suspended for a night, the overdue renewals are paced,
// because other nodes may have been suspended too.
func TestBacklogIsPaced(t *testing.T) {
	virtually(t, func(n *node) {
		for i := range 60 {
			name := fmt.Sprint(i)
			n.keep(name, issuedAt(time.Now(), day, name))
		}
		time.Sleep(time.Hour)
		n.moveDue(time.Now().Add(-time.Hour))
		time.Sleep(10 * time.Minute)
		calls := n.calls()
		if most := mostWithin(calls, time.Minute); len(calls) != 60 || most > 16 {
			t.Errorf("%d calls, %d in a minute", len(calls), most)
		}
		n.settled()
	})
}

// A pod with many short-lived volumes delays no other pod.
func TestGreedyPodDelaysNoOtherPod(t *testing.T) {
	virtually(t, func(n *node) {
		n.takes = 2 * time.Second // the CA is slow
		for i := range 40 {
			n.keepOf("greedy", fmt.Sprint("greedy-", i), issuedAt(time.Now(), 5*time.Minute, fmt.Sprint(i)))
		}
		late := time.Duration(0)
		for _, name := range []string{"a", "b", "c"} {
			n.keep(name, issuedAt(time.Now(), time.Hour, name))
		}
		for range 3 * 60 * 6 {
			time.Sleep(10 * time.Second)
			for _, name := range []string{"a", "b", "c"} {
				late = max(late, time.Since(n.entries[name].State().Validity.Due()))
			}
		}
		if late > 30*time.Second {
			t.Errorf("a renewal of another pod was %s late", late)
		}
	})
}

// Beside 40 certificates that are renewed as often as the plugin allows, those of other
// pods are renewed when they are due, even if the CA is slow. No certificate is renewed
// more often than MinInterval allows.
func TestGreedyRenewalsDelayNoOtherPod(t *testing.T) {
	virtually(t, func(n *node) {
		n.takes = 2 * time.Second
		greedily := func(name string) renewal.Validity {
			v := issuedAt(time.Now(), 5*time.Minute, name)
			v.Before, v.MinInterval = 270*time.Second, time.Minute
			return v
		}
		for i := range 40 {
			name := fmt.Sprint("greedy-", i)
			n.Add(fmt.Sprint("greedy-", i%2), greedily(name), func(ctx context.Context) (renewal.Validity, error) {
				err := n.ask(ctx, Renewal, name)
				return greedily(name), err
			})
		}
		honest := map[string]time.Duration{"a": time.Hour, "b": day, "c": 5 * time.Minute}
		for name, lifetime := range honest {
			n.keep(name, issuedAt(time.Now(), lifetime, name))
		}
		late := time.Duration(0)
		for range 2 * 24 * 60 * 4 {
			time.Sleep(15 * time.Second)
			for name := range honest {
				late = max(late, time.Since(n.entries[name].State().Validity.Due()))
			}
		}
		if late > 30*time.Second {
			t.Errorf("a renewal of another pod was %s late", late)
		}
		last := map[string]time.Time{}
		for _, c := range n.calls() {
			if before, ok := last[c.name]; ok && strings.HasPrefix(c.name, "greedy") && c.at.Sub(before) < time.Minute {
				t.Fatalf("%s was renewed %s after the last time", c.name, c.at.Sub(before))
			}
			last[c.name] = c.at
		}
		if len(last) != 43 {
			t.Errorf("%d certificates were renewed", len(last))
		}
	})
}

// A pod over its rate limit at the issuer backs off with all its certificates. Other pods
// are served as if it were not there.
func TestThrottledPodBacksOff(t *testing.T) {
	virtually(t, func(n *node) {
		var last time.Time // when the issuer last served the greedy pod
		rejected, served := 0, 0
		for i := range 32 {
			v := issuedAt(time.Now(), time.Hour, fmt.Sprint(i))
			v.Before, v.MinInterval = 54*time.Minute, time.Minute // due after 6 minutes
			n.Add("greedy", v, func(ctx context.Context) (renewal.Validity, error) {
				err := n.Call(ctx, Renewal, somePod, func(context.Context) error {
					if time.Since(last) < 20*time.Second {
						rejected++
						return fmt.Errorf("%w: pod greedy", issuer.Throttled)
					}
					last = time.Now()
					served++
					return nil
				})
				if err == nil {
					v.Issued, v.NotAfter = time.Now(), time.Now().Add(time.Hour)
				}
				return v, err
			})
		}
		for i := range 20 {
			name := fmt.Sprint("honest-", i)
			n.keep(name, issuedAt(time.Now(), 10*time.Minute, name))
		}
		late := time.Duration(0)
		for range 6 * 60 * 2 {
			time.Sleep(10 * time.Second)
			for _, e := range n.entries {
				late = max(late, time.Since(e.State().Validity.Due()))
			}
		}
		// Without the greedy pod, renewals of the 20 others are up to half a minute late when
		// many are due at once, by the jitter of the pace.
		if late > time.Minute {
			t.Errorf("a renewal of another pod was %s late", late)
		}
		if served < 100 || rejected > 2*served {
			t.Errorf("the throttled pod was served %d times, and rejected %d times", served, rejected)
		}
	})
}

// A certificate with a short lifetime does not expire because the pod's other
// certificates wait for long.
func TestThrottleFitsTheLifetime(t *testing.T) {
	virtually(t, func(n *node) {
		var failing throttles
		now := time.Now()
		for range 20 {
			now = now.Add(time.Hour)
			failing.rejected("web", now, now)
			failing.rejected("web", now.Add(-time.Second), now) // it began before that failure
		}
		if f := failing["web"].failures; f != 1 {
			t.Errorf("%d failures are remembered for longer than they matter", f)
		}
		for range 20 {
			now = now.Add(time.Second)
			failing.rejected("web", now, now)
		}
		long, short := issuedAt(now.Add(-16*time.Hour), day, "a"), issuedAt(now.Add(-210*time.Second), 5*time.Minute, "b")
		if wait := failing.until("web", long).Sub(now); wait < renewal.SlowestRetry/2 || wait > renewal.SlowestRetry {
			t.Errorf("the certificate with a long lifetime waits for %s", wait)
		}
		if wait := failing.until("web", short).Sub(now); wait > 15*time.Second {
			t.Errorf("the certificate with a short lifetime waits for %s", wait)
		}
		if !failing.until("other", long).IsZero() {
			t.Error("another pod waits")
		}
	})
}

// A certificate with a very short lifetime does not cause a busy loop.
func TestLeastInterval(t *testing.T) {
	virtually(t, func(n *node) {
		n.keep("a", issuedAt(time.Now(), time.Millisecond, "a"))
		time.Sleep(time.Minute)
		if calls := len(n.calls()); calls > 61 {
			t.Errorf("%d renewals in a minute", calls)
		}
	})
}

// A panic in a renewal counts as a failure of this certificate, and is retried.
func TestPanicIsAFailure(t *testing.T) {
	virtually(t, func(n *node) {
		before, tries := panics.Total(), 0
		e := n.Add("a", issuedAt(time.Now(), 3*time.Hour, "a"), func(ctx context.Context) (renewal.Validity, error) {
			if tries++; tries < 3 {
				return renewal.Validity{}, n.Call(ctx, Renewal, somePod, func(context.Context) error { panic("a defect") })
			}
			return issuedAt(time.Now(), 3*time.Hour, "a"), nil
		})
		n.keep("b", issuedAt(time.Now(), 3*time.Hour, "b"))
		time.Sleep(3 * time.Hour)
		n.settled()
		if s := e.State(); tries < 3 || s.Failures != 0 || panics.Total() != before+2 {
			t.Errorf("%d attempts, %d panics, state %+v", tries, panics.Total()-before, s)
		}
		if n.limiter.calls != [2]int{} {
			t.Errorf("the limiter still counts calls: %v", n.limiter.calls)
		}
	})
}

// A pod without a valid token, or over its rate limit, does not stop other pods.
func TestOutcomesOfOnePodDoNotStopOthers(t *testing.T) {
	for _, outcome := range []issuer.Outcome{issuer.Throttled, issuer.NoPodToken, issuer.Canceled, issuer.Denied} {
		virtually(t, func(n *node) {
			n.limiter.limit = 8
			for range 20 {
				_ = n.Call(n.t.Context(), Publish, somePod, func(context.Context) error { return fmt.Errorf("%w: a test", outcome) })
			}
			if n.breaker.IsOpen() || n.limiter.limit < 8 {
				t.Errorf("%v: breaker open: %v, limit %d", outcome, n.breaker.IsOpen(), n.limiter.limit)
			}
		})
	}
}

// All node plugins of a fleet may start at the same moment, with renewals that are
// overdue: the first renewals of the nodes are spread.
func TestFirstRenewalsOfAFleetAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var mu sync.Mutex
		var starts []call
		var running sync.WaitGroup
		for i := range 100 {
			s := New()
			name := fmt.Sprint(i)
			s.Add(name, issuedAt(time.Now().Add(-20*time.Hour), day, name), func(context.Context) (renewal.Validity, error) {
				mu.Lock()
				defer mu.Unlock()
				starts = append(starts, call{name, time.Now()})
				return issuedAt(time.Now(), day, name), nil
			})
			running.Go(func() { s.Run(ctx) })
		}
		time.Sleep(2 * pace)
		stop()
		running.Wait()
		if most := mostWithin(starts, time.Second); len(starts) != 100 || most > 35 {
			t.Errorf("%d renewals, %d within a second", len(starts), most)
		}
	})
}

func TestEndsAtOnce(t *testing.T) {
	virtually(t, func(n *node) {
		n.mu.Lock()
		n.takes = 48 * time.Hour // the CA hangs
		n.mu.Unlock()
		i := n.keep("a", issuedAt(time.Now(), 3*time.Hour, "a"))
		n.keep("b", issuedAt(time.Now(), 3*time.Hour, "b"))
		time.Sleep(2*time.Hour + 30*time.Minute) // during both renewals
		begin := time.Now()
		n.Remove(i)
		n.end()
		if took := time.Since(begin); took > 0 || len(n.calls()) != 2 {
			t.Errorf("the stop took %s", took)
		}
	})
}

func TestGoneIsForgotten(t *testing.T) {
	virtually(t, func(n *node) {
		tries := 0
		n.Add("a", issuedAt(time.Now(), 3*time.Hour, "a"), func(context.Context) (renewal.Validity, error) {
			tries++
			return renewal.Validity{}, fmt.Errorf("not mounted: %w", ErrGone)
		})
		time.Sleep(day)
		synctest.Wait()
		if tries != 1 || len(n.waiting.elements)+len(n.urgent.elements)+n.backlog.size != 0 {
			t.Errorf("%d attempts; remaining entries: %d waiting, %d due", tries, len(n.waiting.elements), n.backlog.size)
		}
	})
}

// Remove removes an entry from every queue.
func TestRemovedIsForgotten(t *testing.T) {
	virtually(t, func(n *node) {
		n.answers(errAway)
		waiting := n.keep("waiting", issuedAt(time.Now(), day, "waiting"))
		for i := range 100 {
			n.keep(fmt.Sprint(i), issuedAt(time.Now().Add(-day/2), day, fmt.Sprint(i)))
		}
		time.Sleep(8 * time.Hour)
		for _, e := range n.entries {
			n.Remove(e)
		}
		n.Remove(waiting)
		synctest.Wait()
		if len(n.waiting.elements)+len(n.urgent.elements)+n.backlog.size+len(n.backlog.pods) != 0 || n.backlog.next(time.Now()) != nil || len(n.backlog.round) != 0 {
			t.Errorf("remaining entries: %d waiting, %d urgent, %d due of %d pods", len(n.waiting.elements), len(n.urgent.elements), n.backlog.size, len(n.backlog.pods))
		}
	})
}
