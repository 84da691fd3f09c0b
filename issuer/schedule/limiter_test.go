package schedule

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/fair"
)

// somePod is the pod of the calls whose pod does not matter.
var somePod = fair.Owner{Namespace: "shop", UID: "some"}

// publish makes count calls concurrently. Each call takes as long as takes returns
// for the current number of calls. publish returns the largest number of concurrent
// calls.
func publish(t *testing.T, l *Limiter, count int, takes func(at int) time.Duration) (most int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	inside := 0
	for range count {
		all.Go(func() {
			release, err := l.Acquire(t.Context(), Publish, somePod)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			inside++
			most = max(most, inside)
			d := takes(inside)
			mu.Unlock()
			time.Sleep(d)
			mu.Lock()
			inside--
			mu.Unlock()
			release(issuer.OK)
		})
	}
	all.Wait()
	return most
}

func TestPublishesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter()
		begin := time.Now()
		most := publish(t, l, 640, func(int) time.Duration { return time.Second })
		if took := time.Since(begin); most != mostCalls || took != 10*time.Second {
			t.Errorf("%d concurrent calls, took %s", most, took)
		}
		if l.calls != [2]int{} || l.Waiting(Publish) != 0 {
			t.Errorf("the limiter still counts calls: %+v", l)
		}
	})
}

// The limiter lowers the number of concurrent calls for an overloaded CA, and raises
// it when the CA is faster.
func TestLimitFollowsTheCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter()
		if most := publish(t, l, 200, func(int) time.Duration { return 7 * time.Second }); most != mostCalls || l.limit != 1 {
			t.Errorf("at most %d concurrent calls, final limit %d", most, l.limit)
		}
		publish(t, l, 200, func(int) time.Duration { return time.Millisecond })
		if l.limit != mostCalls {
			t.Errorf("the limit for a fast CA is %d", l.limit)
		}
	})
}

// A canceled call and a local failure say nothing about the CA's load, however long
// they took.
func TestCanceledCallsDoNotLowerTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, outcome := range []issuer.Outcome{issuer.Canceled, issuer.Failed, issuer.NoPodToken, issuer.CallerRejected} {
			l := NewLimiter()
			for range 100 {
				release, err := l.Acquire(t.Context(), Publish, somePod)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(slowCall)
				release(outcome)
			}
			if l.limit != mostCalls {
				t.Errorf("%v: limit %d", outcome, l.limit)
			}
		}
	})
}

func TestGiveUpWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter()
		l.limit = 1
		var order []string
		hold := func(ctx context.Context, name string, d time.Duration) error {
			release, err := l.Acquire(ctx, Publish, somePod)
			if err == nil {
				order = append(order, name)
				time.Sleep(d)
				release(issuer.OK)
			}
			return err
		}
		go hold(t.Context(), "first", 2*time.Second)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := hold(ctx, "late", 0); issuer.OutcomeOf(err) != issuer.Unavailable {
			t.Errorf("at the deadline: %v", err)
		}
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		if err := hold(canceled, "canceled", 0); issuer.OutcomeOf(err) != issuer.Canceled {
			t.Errorf("with a canceled context: %v", err)
		}
		if err := hold(t.Context(), "second", 0); err != nil {
			t.Error(err)
		}
		if !slices.Equal(order, []string{"first", "second"}) || l.calls != [2]int{} || l.Waiting(Publish) != 0 {
			t.Errorf("order %q, limiter %+v", order, l)
		}
	})
}

// Renewals use at most half of the slots, and fewer while publishes wait. One
// renewal can always run. A publish never waits for a renewal.
func TestRenewalsLeaveRoomForPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := NewLimiter()
		l.limit = 8
		acquire := func(p Priority, count int) {
			for range count {
				go l.Acquire(ctx, p, somePod)
			}
			synctest.Wait()
		}
		acquire(Renewal, 10)
		if l.calls[Renewal] != 4 {
			t.Errorf("%d renewals with a limit of 8", l.calls[Renewal])
		}
		acquire(Publish, 10)
		if l.calls != [2]int{8, 4} || l.Waiting(Publish) != 2 {
			t.Errorf("calls %v with publishes, %d publishes wait", l.calls, l.Waiting(Publish))
		}
		for range 4 {
			l.release(Renewal, time.Now(), issuer.Canceled)
		}
		if l.calls[Renewal] != 1 {
			t.Errorf("%d renewals while publishes wait", l.calls[Renewal])
		}
		cancel()
		synctest.Wait()
	})
}

// A call whose caller gives up costs the CA as much as any other call. So no call
// begins without enough time for the answer, however many calls wait.
func TestNoCallBeginsTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter()
		l.limit = 1
		var all sync.WaitGroup
		begun, late := 0, 0
		for range 100 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
				defer cancel()
				release, err := l.Acquire(ctx, Publish, somePod)
				if err != nil {
					return
				}
				begun++
				deadline, _ := ctx.Deadline()
				if time.Until(deadline) < callTime {
					late++
				}
				time.Sleep(7 * time.Second)
				release(issuer.OK)
			})
		}
		begin := time.Now()
		all.Wait()
		if took := time.Since(begin); begun != 12 || late != 0 || took > 100*time.Second {
			t.Errorf("%d calls began, %d of them too late, took %s", begun, late, took)
		}
	})
}

// 40 pods of a namespace publish 32 volumes each. The first volumes of other pods come
// before almost all of them.
func TestPublishesOfAGreedyNamespaceDelayNoOtherPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter()
		publish := func(pod fair.Owner) {
			release, err := l.Acquire(t.Context(), Publish, pod)
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Second)
			release(issuer.OK)
		}
		for i := range 40 * 32 {
			go publish(fair.Owner{Namespace: "greedy", UID: fmt.Sprint(i / 32)})
		}
		synctest.Wait()
		begin := time.Now()
		var honest sync.WaitGroup
		for _, pod := range []fair.Owner{{Namespace: "shop", UID: "web"}, {Namespace: "bank", UID: "db"}} {
			honest.Go(func() { publish(pod) })
		}
		honest.Wait()
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("other pods waited for %s", took)
		}
		synctest.Wait()
		if left := l.Waiting(Publish); left < 40*32-4*mostCalls {
			t.Errorf("only %d publishes of the greedy namespace still wait", left)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if l.calls != [2]int{} || l.Waiting(Publish) != 0 {
			t.Errorf("the limiter still counts calls: %+v", l.calls)
		}
	})
}
