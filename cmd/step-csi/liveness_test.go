package main

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
)

// A check that hangs, even without regard to its context, fails the probes after hangLimit,
// and not before. The probes recover with the check, and both changes are logged once.
func TestLivenessOfAHangingProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
		ctx := klog.NewContext(t.Context(), logger)
		release := make(chan struct{})
		l := &liveness{check: func(context.Context) error { <-release; return nil }}
		begin := time.Now()
		var failed []time.Duration
		for range 60 { // as the chart's kubelet probes
			if err := l.probe(ctx); err != nil {
				failed = append(failed, time.Since(begin))
				if !strings.Contains(err.Error(), "the process hangs: a check has not ended for") {
					t.Error(err)
				}
			}
			time.Sleep(5 * time.Second)
		}
		if len(failed) == 0 || failed[0] < hangLimit || failed[0] > hangLimit+10*time.Second {
			t.Errorf("the probes failed after %s", failed)
		}
		close(release)
		synctest.Wait()
		if err := l.probe(ctx); err != nil {
			t.Errorf("after the check has ended: %v", err)
		}
		log := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
		if strings.Count(log, "Liveness check failed") != 1 || strings.Count(log, "Liveness check succeeded again") != 1 ||
			!strings.Contains(log, "TestLivenessOfAHangingProcess") { // what hangs
			t.Errorf("logged: %s", log)
		}
	})
}

// A slow check is no failure, and does not run twice at the same time.
func TestLivenessOfASlowProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most, checks atomic.Int32
		l := &liveness{check: func(context.Context) error {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			checks.Add(1)
			time.Sleep(hangLimit - time.Second)
			return nil
		}}
		for range 50 {
			for range 20 {
				go func() {
					if err := l.probe(t.Context()); err != nil {
						t.Error(err)
					}
				}()
			}
			time.Sleep(5 * time.Second)
		}
		time.Sleep(hangLimit)
		if most.Load() != 1 || checks.Load() > 5 {
			t.Errorf("%d checks at once, %d in total", most.Load(), checks.Load())
		}
	})
}

// A failure is returned at once, and is over at the next check. Many probes share a check.
func TestLivenessFollowsTheCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := errors.New("no such file")
		var err atomic.Pointer[error]
		err.Store(&lost)
		var checks atomic.Int32
		l := &liveness{check: func(context.Context) error {
			checks.Add(1)
			if e := err.Load(); e != nil {
				return *e
			}
			return nil
		}}
		for range 100 {
			if got := l.probe(t.Context()); !errors.Is(got, lost) {
				t.Fatal(got)
			}
		}
		if checks.Load() != 1 {
			t.Errorf("%d checks", checks.Load())
		}
		err.Store(nil)
		time.Sleep(checkAge)
		if got := l.probe(t.Context()); got != nil {
			t.Error(got)
		}
	})
}
