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

// harden drops all capabilities but those to keep, permanently and for all threads,
// and protects the memory of the process. Call it before the process reads any input.
// A capability to keep that the process does not have is not an error.
func harden(keep ...cap.Value) error {
	// Files that are created without a mode are for their owner only.
	unix.Umask(0o077)
	// Prevent core dumps, and access by other processes of the same user. The limit is
	// not enough: if core_pattern names a program, the kernel ignores it. See core(5).
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("protect the memory of the process: setrlimit: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("protect the memory of the process: prctl: %w", err)
	}
	if err := keepCapabilities(keep); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// keepCapabilities drops all capabilities but these from all sets of capabilities(7),
// and sets no_new_privs. Package cap does so for all threads.
func keepCapabilities(keep []cap.Value) error {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	// The bounding set limits what an executed program can gain, which is nothing with
	// no_new_privs. So it is no problem that this fails without CAP_SETPCAP.
	for c := range cap.MaxBits() {
		if err := cap.DropBound(c); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("drop the bounding set: %w", err)
		}
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
	// The inheritable set becomes empty, and therefore the ambient set, too.
	return kept.SetProc()
}

// explainDenied adds to a permission error what to change. In the registration authority,
// file modes also apply to root, because it keeps no capability.
func explainDenied(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w: the owner and mode of the file must allow user %d to read it, because step-csi drops root's capability to read any file", err, os.Geteuid())
}
