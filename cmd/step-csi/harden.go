package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// nodeCapabilities are the two that a volume cannot be made without. All else
// that a privileged container has is given up. The targets and the sockets are in
// directories of root, so that no right to override modes is needed.
func nodeCapabilities() []cap.Value {
	return []cap.Value{
		cap.SYS_ADMIN, // to mount, to unmount, and for the record in trusted.step-csi
		cap.CHOWN,     // to give the files to the pod's fsGroup, which root is not in
	}
}

// harden gives up, for all threads and for good, what the process has no use for:
// every capability but those to keep, whatever a program could give back to it,
// and the ways by which its memory gets out. It comes before anything is read
// that others have written. What a process never had is no error here: it may do
// without, or finds out where it matters.
func harden(keep ...cap.Value) error {
	// What is made without a mode of its own is for its owner alone.
	unix.Umask(0o077)
	if err := hideMemory(); err != nil {
		return fmt.Errorf("hide the memory of the process: %w", err)
	}
	if err := keepCapabilities(keep); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// hideMemory keeps keys out of core dumps, and from other processes of the same
// user. The limit alone does not: where core_pattern names a program, the kernel
// gives it the dump whatever the limit says. See core(5).
func hideMemory() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// keepCapabilities leaves those to keep that the process has, and no others in
// any of the sets of capabilities(7). Package cap reaches all threads.
func keepCapabilities(keep []cap.Value) error {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	// Without CAP_SETPCAP the bounding set stays. It bounds what a program that
	// is executed may gain, and with no_new_privs that is nothing.
	if err := dropBounding(); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("the bounding set: %w", err)
	}
	had, kept := cap.GetProc(), cap.NewSet()
	keep = slices.DeleteFunc(slices.Clone(keep), func(c cap.Value) bool {
		permitted, err := had.GetFlag(cap.Permitted, c)
		return err != nil || !permitted
	})
	err := errors.Join(kept.SetFlag(cap.Permitted, true, keep...), kept.SetFlag(cap.Effective, true, keep...))
	if err != nil {
		return err
	}
	// With the inheritable set, the kernel empties the ambient one.
	return kept.SetProc()
}

// dropBounding empties the bounding set, also of what is kept: the process
// executes no other program.
func dropBounding() error {
	for c := range cap.MaxBits() {
		if err := cap.DropBound(c); err != nil {
			return err
		}
	}
	return nil
}

// explainDenied says what to change where a file may not be read: as root, too,
// the process reads only what its modes allow.
func explainDenied(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w: the file must be readable for user %d, by its owner and mode; step-csi gives up root's right to read any file", err, os.Geteuid())
}
