// Package sandbox runs a whole program in mount and PID namespaces of its own,
// so that whatever it mounts and starts is gone with it, also when it is killed.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
)

const marker = "STEP_CSI_SANDBOX"

// Enter runs the program once more, in the sandbox, and exits with that one's
// code; in there, it returns. Call it first in main or TestMain. Without root
// it fails and says so.
func Enter() {
	if os.Getenv(marker) == "1" {
		if err := settle(); err != nil {
			fail(err)
		}
		return
	}
	if os.Geteuid() != 0 {
		fail(errors.New("mounting needs root: run this with sudo"))
	}
	// The child gets its death signal when the thread that started it ends.
	runtime.LockOSThread()
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), marker+"=1")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	// An interrupt reaches the child from the terminal; wait for it to clean up.
	signal.Ignore(os.Interrupt)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGQUIT)
	if err := child.Start(); err != nil {
		fail(fmt.Errorf("make namespaces: %w", err))
	}
	go func() {
		for s := range signals {
			_ = child.Process.Signal(s)
		}
	}()
	err := child.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fail(err)
	}
	if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(child.ProcessState.ExitCode())
}

// settle cuts the mounts off from the machine's, and gives /proc the new
// processes.
func settle() error {
	if err := os.Unsetenv(marker); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
