package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
)

// Free slots go to the waiting keys in turn, whatever one key asks for.
func TestSlotsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, 1, 100)
		release, err := s.acquire(t.Context(), "greedy")
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		next := make(chan func(), 1)
		ask := func(key string) {
			go func() {
				release, err := s.acquire(t.Context(), key)
				if err != nil {
					t.Error(err)
				}
				order = append(order, key) // one at a time: there is one slot
				next <- release
			}()
			synctest.Wait()
		}
		for range 50 {
			ask("greedy")
		}
		ask("first")
		ask("second")
		release()
		for range 52 {
			(<-next)()
		}
		if !slices.Equal(order[:4], []string{"greedy", "first", "second", "greedy"}) {
			t.Errorf("the order was %q", order)
		}
		synctest.Wait()
		if s.free != 1 || len(s.keys)+len(s.queued) > 0 {
			t.Errorf("%d slots are free, and %d keys are left", s.free, len(s.keys))
		}
	})
}

// A key holds and waits for as many as it may, and a call that gives up leaves nothing.
func TestSlotsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(4, 2, 3)
		var held []func()
		for range 2 {
			release, err := s.acquire(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, release)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := s.acquire(ctx, "a")
				ended <- err
			}()
		}
		synctest.Wait()
		if _, err := s.acquire(t.Context(), "a"); !errors.Is(err, errTooManyWait) {
			t.Errorf("a fourth call that waits: %v", err)
		}
		for n := range 2 {
			release, err := s.acquire(t.Context(), fmt.Sprint("other-", n))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, release)
		}
		cancel()
		for range 3 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		for _, release := range held {
			release()
		}
		if s.free != 4 || len(s.keys)+len(s.queued) > 0 {
			t.Errorf("%d slots are free, %d keys and %d queues are left", s.free, len(s.keys), len(s.queued))
		}
	})
}
