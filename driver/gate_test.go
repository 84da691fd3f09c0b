package driver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// visits are who has entered a gate, in that order.
type visits struct {
	mu    sync.Mutex
	names []string
}

func (v *visits) list() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.names)
}

// visit enters the gate and stays for a second.
func (v *visits) visit(t *testing.T, g *gate, name string, renewal bool) {
	leave, err := g.enter(t.Context(), renewal)
	if err != nil {
		t.Error(err)
		return
	}
	defer leave()
	v.mu.Lock()
	v.names = append(v.names, name)
	v.mu.Unlock()
	time.Sleep(time.Second)
}

func (g *gate) places() (free, renewals int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.free, g.renewals
}

func TestPublishesGoAheadOfRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, v := newGate(1), &visits{}
		for _, name := range []string{"first", "renewal 1", "renewal 2", "publish 1", "publish 2"} {
			go v.visit(t, g, name, name[0] == 'r')
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		if want := []string{"first", "publish 1", "publish 2", "renewal 1", "renewal 2"}; !slices.Equal(v.list(), want) {
			t.Errorf("got %q", v.list())
		}
	})
}

func TestGateBoundsAndLeavesRoomForPublishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, v := newGate(4), &visits{}
		for range 10 {
			go v.visit(t, g, "renewal", true)
		}
		synctest.Wait()
		if n := len(v.list()); n != 2 {
			t.Errorf("%d renewals at once in 4 places", n)
		}
		for range 10 {
			go v.visit(t, g, "publish", false)
		}
		synctest.Wait()
		if n := len(v.list()); n != 4 {
			t.Errorf("%d at once in 4 places", n)
		}
		time.Sleep(time.Minute)
		if free, renewals := g.places(); len(v.list()) != 20 || free != 4 || renewals != 2 {
			t.Errorf("%d got in; then %d places are free, %d for renewals", len(v.list()), free, renewals)
		}
	})
}

func TestGiveUpWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1)
		leave, err := g.enter(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, renewal := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := g.enter(ctx, renewal); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			cancel()
		}
		leave()
		leave, err = g.enter(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		if g.free != 1 || g.renewals != 1 || len(g.publishes)+len(g.waiting) > 0 {
			t.Errorf("left: %+v", g)
		}
	})
}

func TestLocksSerialiseOneVolumeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l locks
		inside, most := 0, 0
		var wg sync.WaitGroup
		begin := time.Now()
		for range 5 {
			for _, id := range []string{"a", "b"} {
				wg.Go(func() {
					release, err := l.acquire(t.Context(), id)
					if err != nil {
						t.Error(err)
						return
					}
					defer release()
					if id == "a" {
						inside++
						most = max(most, inside)
					}
					time.Sleep(time.Second)
					if id == "a" {
						inside--
					}
				})
			}
		}
		wg.Wait()
		if most != 1 || time.Since(begin) != 5*time.Second || len(l.held) != 0 {
			t.Errorf("%d at once, in %s, %d locks left", most, time.Since(begin), len(l.held))
		}
		release, err := l.acquire(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.acquire(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
