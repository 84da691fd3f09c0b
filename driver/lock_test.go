package driver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

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
			t.Errorf("%d holders at once, took %s, %d locks remain", most, time.Since(begin), len(l.held))
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
