package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/test/node"
)

// filesOwner is the user who owns the files in attacks.
const filesOwner = 1234

// A user who owns the files, and whose mode lets it write, cannot change a volume that is
// mounted read-only. It can take leases on its files, which make other processes wait when
// they open them: the plugin waits for none.
func TestAttackByOwner(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	n.Publish(honest)
	p := node.Pod{Name: "owner-0", Attributes: map[string]string{
		"owner-uid": strconv.Itoa(filesOwner), "file-mode": "0600", "pkcs12-file": "keystore.p12", "duration": "6s", "reuse-private-key": "true"}}
	n.Publish(p)
	volume, err := os.Open(n.Target(p))
	node.Must(t, err)
	defer volume.Close()
	set := fmt.Sprintf("/proc/self/fd/%d/..data/", volume.Fd())
	as(filesOwner, func() {
		for what, change := range map[string]func(path string) error{
			"write":     func(path string) error { return os.WriteFile(path, nil, 0) },
			"truncate":  func(path string) error { return os.Truncate(path, 0) },
			"chmod":     func(path string) error { return os.Chmod(path, 0o644) },
			"chown":     func(path string) error { return os.Chown(path, filesOwner, filesOwner) },
			"touch":     func(path string) error { return os.Chtimes(path, time.Now(), time.Now()) },
			"attribute": func(path string) error { return unix.Setxattr(path, "user.a", nil, 0) },
			"remove":    os.Remove,
			"replace":   func(path string) error { return os.Rename(path, set+"ca.crt") },
		} {
			if err := change(set + "tls.key"); !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, name := range attackedFiles {
			file, err := os.Open(set + name)
			if err != nil {
				t.Error(err)
				continue
			}
			t.Cleanup(func() { file.Close() })
			// While the plugin has the file open, it gets no lease.
			_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
			for deadline := time.Now().Add(time.Minute); errors.Is(err, unix.EAGAIN) && time.Now().Before(deadline); {
				_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
			}
			if err != nil {
				t.Errorf("lease on %s: %v", name, err)
			}
		}
	})
	renewed := func(p node.Pod, when string) {
		t.Helper()
		before := certificateOf(t, n, p)
		node.Eventually(t, time.Minute, p.Name+" is renewed "+when, func() bool { return certificateOf(t, n, p) != before })
	}
	renewed(honest, "beside the owner with leases")
	n.Kill()
	n.Start()
	n.Republish()
	renewed(honest, "after a restart")
	n.Unpublish(p)
	n.ExpectGone(p)
	n.Unpublish(honest)
}

// as calls f with the rights of an unprivileged user on files.
func as(uid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		// Setfsuid and Setfsgid return the previous ID, and no error.
		_ = unix.Setfsgid(uid)
		_ = unix.Setfsuid(uid)
		f()
	}()
	<-done
}

// The smallest and the largest IDs that a pod can have own the files, with the modes asked for.
func TestSmallestAndLargestIDs(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	for i, id := range []int{0, math.MaxInt32} {
		p := node.Pod{Name: fmt.Sprint("web-", i), Attributes: map[string]string{
			"owner-uid": strconv.Itoa(id), "fs-group": strconv.Itoa(id), "file-mode": "0640", "privatekey-mode": "0400"}}
		n.Publish(p)
		for name, mode := range map[string]fs.FileMode{"tls.crt": 0o640, "ca.crt": 0o640, "tls.key": 0o400} {
			info, err := os.Stat(filepath.Join(n.Target(p), name))
			node.Must(t, err)
			if owner := info.Sys().(*syscall.Stat_t); info.Mode() != mode || int(owner.Uid) != id || int(owner.Gid) != id {
				t.Errorf("%s has mode %v and owner %d:%d, want %v and %d", name, info.Mode(), owner.Uid, owner.Gid, mode, id)
			}
		}
		n.Unpublish(p)
	}
}
