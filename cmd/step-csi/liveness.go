package main

import (
	"bytes"
	"context"
	"fmt"
	"runtime/pprof"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// hangLimit is how long a check may take, which takes milliseconds normally. The chart
	// restarts a container only after two minutes of failures on top.
	hangLimit = time.Minute
	// probeWait is how long a probe waits for the end of a check. It is shorter than the
	// timeout of the chart's probes. After it, the result of the check before counts.
	probeWait = 3 * time.Second
	// checkAge is how old a result may be. Every pod of the cluster may be able to probe.
	checkAge = time.Second
)

// liveness tells whether the process works as far as only a restart can repair it. It runs
// the program's check when it is asked, and never two checks at once. A check that hangs,
// such as for a lock, is a failure.
type liveness struct {
	check func(context.Context) error

	mu      sync.Mutex
	began   time.Time     // of the last check
	ended   time.Time     // of the last check that has ended
	running chan struct{} // of the check in progress, which closes it; nil if there is none
	err     error         // of the last check that has ended
	failing bool          // the failure is logged
}

// probe returns an error if the process must be restarted.
func (l *liveness) probe(ctx context.Context) error {
	running := l.begin(ctx)
	wait := time.NewTimer(probeWait)
	defer wait.Stop()
	select {
	case <-running:
	case <-wait.C:
	case <-ctx.Done():
	}
	err, changed := l.result()
	switch {
	case changed && err != nil:
		klog.FromContext(ctx).Error(err, "Liveness check failed", "goroutines", goroutines())
	case changed:
		klog.FromContext(ctx).Info("Liveness check succeeded again")
	}
	return err
}

// begin begins a check, unless one is in progress or has just ended. The channel is closed
// when it has ended.
func (l *liveness) begin(ctx context.Context) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running != nil {
		return l.running
	}
	running := make(chan struct{})
	if !l.ended.IsZero() && time.Since(l.ended) < checkAge {
		close(running)
		return running
	}
	l.began, l.running = time.Now(), running
	// A check that hangs is left behind when the process ends.
	go func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), hangLimit)
		defer cancel()
		err := l.check(limited)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ended, l.running, l.err = time.Now(), nil, err
		close(running)
	}()
	return running
}

// result returns the error of the last check, and whether the state has changed since the
// last call.
func (l *liveness) result() (err error, changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err = l.err
	if took := time.Since(l.began); l.running != nil && took >= hangLimit {
		err = fmt.Errorf("the process hangs: a check has not ended for %s", took.Round(time.Second))
	}
	changed = l.failing != (err != nil)
	l.failing = err != nil
	return err, changed
}

// goroutines returns what all goroutines wait for. It has names of functions, and no values.
func goroutines() string {
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 1); err != nil {
		return err.Error()
	}
	return all.String()
}
