package main

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// forwardedSignals are those that users and container runtimes send to programs.
var forwardedSignals = []os.Signal{
	unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT,
}

// runProgram starts the program, calls started, forwards all signals, including the
// one that ends ctx, and waits for the program's end. The error is an exitStatus if
// the exit status is not 0.
func runProgram(ctx context.Context, command []string, started func(*os.Process)) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwardedSignals...)
	if ctx.Err() != nil { // the signal came before Notify
		signal.Stop(signals)
		return nil
	}
	program, err := start(command, nil)
	if err != nil {
		signal.Stop(signals)
		return err
	}
	var forwarding sync.WaitGroup
	forwarding.Go(func() {
		for s := range signals {
			_ = program.Signal(s) // fails only if the program has ended
		}
	})
	started(program)
	err = wait(program.Pid)
	signal.Stop(signals)
	close(signals)
	forwarding.Wait()
	return err
}
