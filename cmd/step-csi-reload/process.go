package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// exitStatus is the exit status of a program as a shell reports it: 128+n if signal
// n killed the program.
type exitStatus int

// Error implements error.
func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// start starts the command with this process's input, outputs and environment.
func start(command []string, attributes *syscall.SysProcAttr) (*os.Process, error) {
	path, err := exec.LookPath(command[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return nil, fmt.Errorf("start the program: %w", err)
	}
	return os.StartProcess(path, command, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: attributes})
}

// wait waits for the process. On the way it reaps orphans, which the kernel gives to
// process 1. Nothing else in this program may wait for processes.
func wait(pid int) error {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("wait4", err)
		case ended != pid:
		case status.Signaled():
			return exitStatus(128 + int(status.Signal()))
		case status.ExitStatus() != 0:
			return exitStatus(status.ExitStatus())
		default:
			return nil
		}
	}
}

// runProgram starts the program, calls started, forwards all signals, including the
// one that ends ctx, and waits for the program's end. The error is an exitStatus if
// the exit status is not 0.
func runProgram(ctx context.Context, command []string, started func(*os.Process)) error {
	signals := make(chan os.Signal, 16)
	// These are the signals that users and container runtimes send to programs.
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT)
	defer signal.Stop(signals)
	if ctx.Err() != nil { // the signal came before Notify
		return nil
	}
	program, err := start(command, nil)
	if err != nil {
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
