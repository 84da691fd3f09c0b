package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	outsideCommand = "__outside"
	insideCommand  = "__inside"
)

// runOutside is the cluster's process on the machine. It holds the cluster's lock,
// starts the node's first process in its own namespaces, and forwards connections to
// the API server. It ends with the node, and the node ends with it. When the owner
// ends, if there is one, runOutside removes the cluster.
func runOutside(directory, owner string) error {
	file, err := os.OpenFile(filepath.Join(directory, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.New("the cluster is already running")
	}
	for _, old := range []string{"ready", apiSocket} {
		os.Remove(filepath.Join(directory, old))
	}
	name := filepath.Base(directory)
	if err := removeControlGroups(name); err != nil {
		return err
	}
	if err := makeControlGroups(name); err != nil {
		return err
	}
	address, err := os.ReadFile(filepath.Join(directory, "address"))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", string(address))
	if err != nil {
		return fmt.Errorf("another process uses the cluster's port: %w", err)
	}
	defer listener.Close()
	go forward(listener, filepath.Join(directory, apiSocket))

	node := exec.Command("/proc/self/exe", insideCommand, directory)
	node.Stdout, node.Stderr = os.Stdout, os.Stderr
	node.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := node.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(directory, "pid"), []byte(strconv.Itoa(node.Process.Pid)), 0o644); err != nil {
		return errors.Join(err, node.Process.Kill(), node.Wait())
	}
	var abandoned atomic.Bool
	go func() {
		if waitForEnd(owner) {
			abandoned.Store(true)
			node.Process.Kill()
		}
	}()
	err = node.Wait()
	if abandoned.Load() {
		return errors.Join(removeControlGroups(name), os.RemoveAll(directory))
	}
	return err
}

// waitForEnd waits until the process has ended. It returns false at once if the PID
// is 0.
func waitForEnd(pid string) bool {
	number, err := strconv.Atoi(pid)
	if err != nil || number <= 0 {
		return false
	}
	fd, err := unix.PidfdOpen(number, 0)
	if err != nil { // the process has already ended
		return true
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n > 0 || err != unix.EINTR {
			return true
		}
	}
}

// forward forwards connections to a unix socket. Unix sockets work across network
// namespaces, so the machine's network needs no change.
func forward(listener net.Listener, socket string) {
	for {
		from, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer from.Close()
			to, err := net.Dial("unix", socket)
			if err != nil {
				return
			}
			defer to.Close()
			join(from, to)
		}()
	}
}

// join copies in both directions until one side ends.
func join(a, b net.Conn) {
	ended := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			io.Copy(pair[0], pair[1])
			ended <- struct{}{}
		}()
	}
	<-ended
}
