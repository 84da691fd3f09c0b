package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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

// execute runs the command. When ctx ends, it kills the command and the processes
// that the command has started.
func execute(ctx context.Context, command []string) error {
	p, err := start(command, &syscall.SysProcAttr{Setpgid: true})
	if err != nil {
		return err
	}
	end := context.AfterFunc(ctx, func() { _ = unix.Kill(-p.Pid, unix.SIGKILL) })
	defer end()
	if err := wait(p.Pid); err != nil {
		return fmt.Errorf("%s: %w", command[0], err)
	}
	return nil
}
