package fair

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// One namespace has all slots but one. A caller of another namespace starts at once, and
// a second one with the next free slot.
func TestSlotsForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSemaphore(3)
		var mu sync.Mutex
		ended := map[string]int{}
		work := func(o Owner) {
			release, err := s.Acquire(t.Context(), o)
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Second)
			mu.Lock()
			ended[o.Namespace]++
			mu.Unlock()
			release()
		}
		for i := range 1000 {
			go work(Owner{"greedy", fmt.Sprint(i % 40)})
		}
		synctest.Wait()
		if s.total != 2 || s.waiting.Len() != 998 {
			t.Errorf("%d slots taken by one namespace, %d callers wait", s.total, s.waiting.Len())
		}
		begin := time.Now()
		go work(Owner{"shop", "web-1"})
		synctest.Wait()
		if s.total != 3 {
			t.Error("another namespace waits, although a slot is free")
		}
		work(Owner{"shop", "web-2"})
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("the second caller of another namespace took %s", took)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.total != 0 || len(s.working) != 0 || s.waiting.Len() != 0 || ended["greedy"] != 1000 || ended["shop"] != 2 {
			t.Errorf("%d callers work, %d wait, %v have ended", s.total, s.waiting.Len(), ended)
		}
	})
}

// A caller that gives up leaves its slot to the next one.
func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSemaphore(0)
		first, err := s.Acquire(t.Context(), Owner{"shop", "web"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Acquire(ctx, Owner{"shop", "web"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while another one works: %v", err)
		}
		first()
		next, err := s.Acquire(t.Context(), Owner{"shop", "web"})
		if err != nil {
			t.Fatal(err)
		}
		next()
		if s.total != 0 || s.waiting.Len() != 0 {
			t.Errorf("%d callers work, %d wait", s.total, s.waiting.Len())
		}
	})
}
