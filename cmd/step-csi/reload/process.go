package reload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ExitStatus is that of a program: as a shell has it, 128+n for one that was
// killed by signal n.
type ExitStatus int

// Error implements error.
func (s ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// start starts the command with this process's input, outputs and environment.
func start(command []string, sys *syscall.SysProcAttr) (*os.Process, error) {
	path, err := lookPath(command[0])
	if err != nil {
		return nil, err
	}
	return os.StartProcess(path, command, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: sys})
}

// wait collects the process, and on the way orphans, which come to process 1.
// Nothing else in this program waits for processes.
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
			return ExitStatus(128 + int(status.Signal()))
		case status.ExitStatus() != 0:
			return ExitStatus(status.ExitStatus())
		default:
			return nil
		}
	}
}

// execute runs the command, and kills it, with what it has started, when ctx ends.
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

// ends tells whether the signal is one to end programs.
func ends(s syscall.Signal) bool {
	return slices.Contains([]syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGKILL}, s)
}

// send sends the signal, unless it would kill a program that does not handle it
// yet, because it has just started.
func send(s syscall.Signal, p *os.Process) error {
	if !ends(s) && !handles(p.Pid, s) {
		return fmt.Errorf("process %d does not handle %s, which would end it", p.Pid, unix.SignalName(s))
	}
	if err := p.Signal(s); err != nil {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(s), p.Pid, err)
	}
	return nil
}

// handles is true, too, for a process of which that cannot be known.
func handles(pid int, s syscall.Signal) bool {
	caught, err := strconv.ParseUint(processStatus(pid)["SigCgt"], 16, 64)
	return err != nil || caught&(1<<(s-1)) != 0
}

// processStatus is /proc/PID/status, see proc(5), or nothing.
func processStatus(pid int) map[string]string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.TrimSpace(value)
	}
	return fields
}

const hint = "; in a sidecar it takes shareProcessNamespace: true in the pod's spec, and the program's user"

// signalOthers sends the signal to processes that others have started.
func (c Config) signalOthers() error {
	pids, err := c.others()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = send(c.Signal, p)
		}
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w%s", err, hint)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c Config) others() ([]int, error) {
	if c.ProcessName != "" {
		return named(c.ProcessName)
	}
	pid, err := readPIDFile(c.PIDFile)
	if err == nil && pid == os.Getpid() {
		err = fmt.Errorf("%s names process %d, which is this one%s", c.PIDFile, pid, hint)
	}
	return []int{pid}, err
}

// readPIDFile takes the first line, after which some programs write more.
func readPIDFile(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s: its first line is no process id", path)
	}
	return pid, nil
}

// named returns the processes of that name whose parents have another: not the
// workers that a server starts.
func named(name string) ([]int, error) {
	directories, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	name = name[:min(len(name), 15)] // as the kernel has it
	var pids []int
	for _, directory := range directories {
		pid, err := strconv.Atoi(filepath.Base(directory))
		if err != nil || pid == os.Getpid() {
			continue
		}
		status := processStatus(pid)
		parent, _ := strconv.Atoi(status["PPid"])
		if status["Name"] == name && processStatus(parent)["Name"] != name {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("no process is called %s%s: %w", name, hint, fs.ErrNotExist)
	}
	return pids, nil
}
