package schedule

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// publishing runs many at a time, each of which takes so long; it returns the
// largest number at a time.
func publishing(t *testing.T, l *Line, count int, takes func(at int) time.Duration) (most int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	inside := 0
	for range count {
		all.Go(func() {
			err := l.Publish(t.Context(), func(context.Context) error {
				mu.Lock()
				inside++
				most = max(most, inside)
				d := takes(inside)
				mu.Unlock()
				time.Sleep(d)
				mu.Lock()
				inside--
				mu.Unlock()
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return most
}

func TestPublishesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLine()
		begin := time.Now()
		most := publishing(t, l, 640, func(int) time.Duration { return time.Second })
		if took := time.Since(begin); most != mostPlaces || took != 10*time.Second {
			t.Errorf("%d at a time, in %s", most, took)
		}
		if l.places.calls != 0 || len(l.places.waiting) != 0 {
			t.Errorf("left: %+v", l.places)
		}
	})
}

// A CA that has more to do than it can is asked for less at a time, and for more
// again when it is faster.
func TestFewerPlacesAtASlowCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLine()
		if most := publishing(t, l, 200, func(int) time.Duration { return 7 * time.Second }); most != mostPlaces || l.places.limit != 1 {
			t.Errorf("%d at a time at first, %d in the end", most, l.places.limit)
		}
		publishing(t, l, 200, func(int) time.Duration { return time.Millisecond })
		if l.places.limit != mostPlaces {
			t.Errorf("%d places at a fast CA", l.places.limit)
		}
	})
}

func TestGiveUpWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLine()
		l.places.limit = 1
		var order []string
		go l.Publish(t.Context(), func(context.Context) error {
			time.Sleep(time.Minute)
			order = append(order, "first")
			return nil
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Publish(ctx, func(context.Context) error { order = append(order, "late"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if err := l.Publish(t.Context(), func(context.Context) error { order = append(order, "second"); return nil }); err != nil {
			t.Error(err)
		}
		if !slices.Equal(order, []string{"first", "second"}) || l.places.calls != 0 {
			t.Errorf("%q, left: %+v", order, l.places)
		}
	})
}

func TestRenewalsLeaveRoomForPods(t *testing.T) {
	p := places{limit: 8}
	begun := 0
	for p.forRenewal(false) {
		p.calls++
		p.renewals++
		begun++
	}
	if begun != 4 {
		t.Errorf("%d renewals of 8 calls", begun)
	}
	p = places{limit: 8, waiting: []chan struct{}{nil}}
	if p.forRenewal(false) || !p.forRenewal(true) {
		t.Error("only an urgent renewal does not wait for pods")
	}
}

// With one place left at a CA that hangs, the renewal that finds out whether it still
// does is not in a pod's way.
func TestPodsDoNotWaitForAHangingRenewal(t *testing.T) {
	virtually(t, func(n *node) {
		n.places.limit = 1
		n.takes = time.Minute
		n.keep("a", issuedAt(time.Now().Add(-day), day, "a"))
		time.Sleep(10 * time.Second) // it begins at a pace
		begin := time.Now()
		if err := n.Publish(n.t.Context(), func(context.Context) error { return nil }); err != nil || time.Since(begin) > 0 {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		if calls := n.calls(); len(calls) != 1 {
			t.Errorf("%d renewals", len(calls))
		}
	})
}

// A call that is given up before its answer costs the CA as much as any other. So
// none is begun that has no time left for the answer, however long the line is.
func TestNoCallBeginsTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLine()
		l.places.limit = 1
		var all sync.WaitGroup
		begun, late := 0, 0
		for range 100 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
				defer cancel()
				_ = l.Publish(ctx, func(ctx context.Context) error {
					begun++
					deadline, _ := ctx.Deadline()
					if time.Until(deadline) < answer {
						late++
					}
					time.Sleep(7 * time.Second)
					return nil
				})
			})
		}
		begin := time.Now()
		all.Wait()
		if took := time.Since(begin); begun != 12 || late != 0 || took > 100*time.Second {
			t.Errorf("%d begun, %d of them too late, in %s", begun, late, took)
		}
	})
}
