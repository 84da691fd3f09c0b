package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// endsPrograms reports whether the purpose of the signal is to end a program.
func endsPrograms(s syscall.Signal) bool {
	return slices.Contains([]syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGKILL}, s)
}

// send sends the signal. It does not send HUP, USR1 and the like to a process that
// has no handler for them: the process may have just started, and the signal would
// kill it.
func send(s syscall.Signal, p *os.Process) error {
	if !endsPrograms(s) && !handles(p.Pid, s) {
		return fmt.Errorf("process %d does not handle %s, which would end it", p.Pid, unix.SignalName(s))
	}
	if err := p.Signal(s); err != nil {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(s), p.Pid, err)
	}
	return nil
}

// handles reports whether the process has a handler for the signal. It returns true if
// that is unknown.
func handles(pid int, s syscall.Signal) bool {
	caught, err := strconv.ParseUint(processStatus(pid)["SigCgt"], 16, 64)
	return err != nil || caught&(1<<(s-1)) != 0
}

// processStatus returns the fields of /proc/PID/status, see proc_pid_status(5), or
// nil if there is no such process.
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

const sidecarHint = "; a sidecar needs shareProcessNamespace: true in the pod's spec and the same user as the program"

// signalOthers sends the signal to processes that are not children of this one.
func (c config) signalOthers() error {
	var pids []int
	var err error
	if c.processName != "" {
		pids, err = findProcesses(c.processName)
	} else {
		var pid int
		pid, err = readPIDFile(c.pidFile)
		pids = []int{pid}
	}
	if err != nil {
		return err
	}
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = send(c.signal, p)
		}
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w%s", err, sidecarHint)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readPIDFile reads the first line. Some programs write more lines.
func readPIDFile(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	switch {
	case err != nil || pid <= 0:
		return 0, fmt.Errorf("%s: the first line is not a process ID", path)
	case pid == os.Getpid():
		return 0, fmt.Errorf("%s names process %d, which is step-csi-reload itself%s", path, pid, sidecarHint)
	}
	return pid, nil
}

// findProcesses returns the processes of that name whose parents have another name:
// a server, but not its workers.
func findProcesses(name string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	const kernelLimit = 15 // TASK_COMM_LEN without the terminating zero
	name = name[:min(len(name), kernelLimit)]
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
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
		return nil, fmt.Errorf("no process is called %s%s: %w", name, sidecarHint, fs.ErrNotExist)
	}
	return pids, nil
}
