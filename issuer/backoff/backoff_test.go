package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer/backoff"
)

func TestWaitsDoubleUpToTheMaximum(t *testing.T) {
	b := backoff.Backoff{First: time.Second, Max: 5 * time.Second}
	for range 2 {
		for i, most := range []time.Duration{1, 2, 4, 5, 5} {
			if wait := b.Next(); wait <= most*time.Second/2 || wait > most*time.Second {
				t.Errorf("wait %d is %s, want between %s and %s", i, wait, most*time.Second/2, most*time.Second)
			}
		}
		b.Reset()
	}
}

func TestWaitsAreSpread(t *testing.T) {
	different := map[time.Duration]bool{}
	for range 100 {
		b := backoff.Backoff{First: time.Second, Max: time.Second}
		different[b.Next()] = true
	}
	if len(different) < 90 {
		t.Errorf("only %d different waits of 100", len(different))
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if !backoff.Sleep(t.Context(), time.Minute) || time.Since(begin) != time.Minute {
			t.Errorf("Sleep took %s", time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if backoff.Sleep(ctx, time.Minute) || time.Since(begin) != time.Second {
			t.Errorf("Sleep took %s with a canceled context", time.Since(begin))
		}
	})
}
