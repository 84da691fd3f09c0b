package reload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"k8s.io/klog/v2"
)

// The pause after a failure doubles, from the first to the longest.
const (
	firstPause   = time.Second
	longestPause = time.Minute
)

// action tells the program.
type action func(context.Context) error

// loop acts once for each change of the contents.
type loop struct {
	contents func() (digest, error)
	changes  <-chan struct{} // perhaps
	debounce time.Duration
	timeout  time.Duration // of an action

	due    bool   // to act at once
	known  digest // of what was seen last
	silent bool   // that nothing is there has been said
}

// await waits until the contents can be read. It tells whether that came before
// ctx ended.
func (l *loop) await(ctx context.Context) bool {
	for {
		if _, seen := l.look(ctx); seen {
			return true
		}
		select {
		case <-l.changes:
		case <-ctx.Done():
			return false
		}
	}
}

// look reads the contents, and tells whether they are others than before, and
// whether they could be read.
func (l *loop) look(ctx context.Context) (changed, seen bool) {
	logger := klog.FromContext(ctx)
	now, err := l.contents()
	switch {
	case err == nil:
		changed, l.known, l.silent = now != l.known, now, false
		return changed, true
	case l.silent:
	case errors.Is(err, fs.ErrNotExist):
		logger.Info("Waiting for the files", "missing", err.Error())
	default:
		logger.Error(err, "The files cannot be read; waiting until they can")
	}
	l.silent = true
	return false, false
}

// run acts after changes until ctx ends. What fails is tried again until it
// succeeds, or until there is something newer to tell.
func (l *loop) run(ctx context.Context, act action) {
	var retry <-chan time.Time
	failures := 0
	if l.due {
		retry = time.After(0)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.changes:
			if !pause(ctx, l.debounce) {
				return
			}
			if changed, _ := l.look(ctx); !changed {
				continue
			}
			failures = 0
		case <-retry:
		}
		retry = nil
		if err := l.try(ctx, act); err != nil {
			wait := min(firstPause<<min(failures, 10), longestPause)
			failures++
			klog.FromContext(ctx).Error(err, "Reload failed", "failures", failures, "next", wait.String())
			retry = time.After(wait)
			continue
		}
		klog.FromContext(ctx).Info("Reloaded")
	}
}

func (l *loop) try(ctx context.Context, act action) error {
	limited, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err := act(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("not done within %s: %w", l.timeout, err)
	}
	return err
}

// pause tells whether it was over before ctx was.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
