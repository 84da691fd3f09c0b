package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"
)

// The backoff doubles with each failure, from the first to the longest.
const (
	firstBackoff   = time.Second
	longestBackoff = time.Minute
)

// loop acts once for each change of the contents. It has no goroutine of its own.
type loop struct {
	log      *slog.Logger
	contents func() (digest, error)
	changes  <-chan struct{} // says that the contents may have changed
	debounce time.Duration
	timeout  time.Duration // of an action

	due     bool   // act once at the start
	last    digest // of the contents when they were last read
	waiting bool   // the log already says that the contents cannot be read
}

// await waits until the contents can be read. It returns false if ctx ends first.
func (l *loop) await(ctx context.Context) bool {
	for {
		if _, ok := l.read(); ok {
			return true
		}
		select {
		case <-l.changes:
		case <-ctx.Done():
			return false
		}
	}
}

// read reads the contents. ok is false if that fails. changed reports whether the
// contents differ from those that it read before.
func (l *loop) read() (changed, ok bool) {
	var now digest
	err := recovered(l.log, func() (err error) {
		now, err = l.contents()
		return err
	})
	switch {
	case err == nil:
		changed, l.last, l.waiting = now != l.last, now, false
		return changed, true
	case l.waiting:
	case errors.Is(err, fs.ErrNotExist):
		l.log.Info("Waiting for the files", "missing", err)
	default:
		l.log.Error("Cannot read the files; waiting until this succeeds", "err", err)
	}
	l.waiting = true
	return false, false
}

// run acts after each change until ctx ends. It retries a failed action until the
// action succeeds or the contents change again.
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
			select {
			case <-ctx.Done():
				return
			case <-time.After(l.debounce):
			}
			if changed, _ := l.read(); !changed {
				continue
			}
			failures = 0
		case <-retry:
		}
		retry = nil
		if err := l.try(ctx, act); err != nil {
			backoff := min(firstBackoff<<min(failures, 10), longestBackoff)
			failures++
			l.log.Error("Reload failed", "err", err, "failures", failures, "retryIn", backoff)
			retry = time.After(backoff)
			continue
		}
		l.log.Info("Reloaded")
	}
}

// try acts once, for at most l.timeout.
func (l *loop) try(ctx context.Context, act action) error {
	limited, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	err := recovered(l.log, func() error { return act(limited) })
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("timed out after %s: %w", l.timeout, err)
	}
	return err
}
