// Package sandbox runs a whole program in its own mount and PID namespaces. When
// the program ends, even by SIGKILL, the kernel removes its mounts and processes.
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

// Enter runs the program again in the sandbox, and exits with the exit status of that
// process. In the sandbox, Enter returns. Call Enter first in main or TestMain. Without
// root, it prints an error and exits.
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
	// The kernel sends Pdeathsig when the thread that started the child ends, not the
	// process: prctl(2), PR_SET_PDEATHSIG.
	runtime.LockOSThread()
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), marker+"=1")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The terminal sends an interrupt to the child, too. Wait until it has cleaned up.
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

// settle stops the propagation of mounts to and from the machine, and mounts a
// /proc that shows the sandbox's processes.
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
