package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
)

// reload waits until all directories have files, starts the program if there is
// one, and acts after each change until ctx ends. With a program it returns when
// the program has ended: nil for exit status 0, otherwise an exitStatus.
func reload(ctx context.Context, log *slog.Logger, c config) error {
	// The signal that ends ctx is forwarded to the program, which may run on for a
	// while. Its end, not the end of ctx, stops the goroutines.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var goroutines sync.WaitGroup
	defer goroutines.Wait()
	defer stop()
	changes := make(chan struct{}, 1)
	goroutines.Go(func() { watch(background, log, c.directories, changes) })

	l := &loop{
		log:      log,
		contents: func() (digest, error) { return contents(c.directories) },
		changes:  changes, debounce: c.debounce, timeout: c.timeout,
	}
	if !l.await(ctx) {
		return nil
	}
	log.Info("Watching", "directories", c.directories)
	if len(c.program) > 0 {
		return runProgram(ctx, c.program, func(program *os.Process) {
			goroutines.Go(func() { l.run(background, c.action(program)) })
		})
	}
	// The files may have changed while no sidecar was running, so it acts once at
	// the start. It does not send a signal that ends programs: the program may have
	// just started.
	l.due = c.signal == 0 || !endsPrograms(c.signal)
	l.run(ctx, c.action(nil))
	return nil
}

// recovered runs f. It logs a panic of f with the stack, and returns it as an error.
// A panic in any goroutine would otherwise end this process and, where it is process
// 1 of a container, the user's program with it.
func recovered(log *slog.Logger, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			log.Error("Recovered a panic", "err", err, "stack", string(debug.Stack()))
		}
	}()
	return f()
}
