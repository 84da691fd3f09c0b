package tmpfs_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

func mountOf(t *testing.T, path string) tmpfs.Mount {
	t.Helper()
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	must(t, err)
	defer f.Close()
	m, err := tmpfs.MountOf(f)
	must(t, err)
	return m
}

// bind mounts the directory on itself, with this propagation.
func bind(t *testing.T, path string, propagation ...uintptr) {
	t.Helper()
	must(t, os.MkdirAll(path, 0o755))
	must(t, syscall.Mount(path, path, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { must(t, syscall.Unmount(path, syscall.MNT_DETACH)) })
	for _, p := range propagation {
		must(t, syscall.Mount("", path, "", p, ""))
	}
}

func TestMountOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b")
	bind(t, path, syscall.MS_SHARED)
	directory := filepath.Join(path, "directory")
	must(t, os.Mkdir(directory, 0o755))
	m := mountOf(t, directory)
	if m.Point != path || !m.Shared || m.Slave {
		t.Errorf("shared: %+v", m)
	}
	// A peer of it becomes a slave, and then both.
	peer := filepath.Join(t.TempDir(), "peer")
	must(t, os.Mkdir(peer, 0o755))
	must(t, syscall.Mount(path, peer, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { must(t, syscall.Unmount(peer, syscall.MNT_DETACH)) })
	must(t, syscall.Mount("", peer, "", syscall.MS_SLAVE, ""))
	if m := mountOf(t, peer); m.Point != peer || m.Shared || !m.Slave {
		t.Errorf("slave: %+v", m)
	}
	must(t, syscall.Mount("", peer, "", syscall.MS_SHARED, ""))
	if m := mountOf(t, peer); !m.Shared || !m.Slave {
		t.Errorf("shared and slave: %+v", m)
	}
	must(t, syscall.Mount("", path, "", syscall.MS_PRIVATE, ""))
	private := mountOf(t, directory)
	if private.Shared || private.Slave {
		t.Errorf("private: %+v", private)
	}
	if !private.Is(m) || private.Is(mountOf(t, peer)) {
		t.Error("the propagation is a part of the identity, or two mounts are the same")
	}
	// Something else is mounted there.
	mountAt(t, "other", directory)
	if mountOf(t, directory).Is(m) {
		t.Error("another mount is the same")
	}
}

// A mount goes with its directory when somebody renames it.
func TestMountOfARenamedDirectory(t *testing.T) {
	parent, point := t.TempDir(), t.TempDir()
	directory := filepath.Join(parent, "directory")
	must(t, os.Mkdir(directory, 0o755))
	must(t, syscall.Mount(directory, point, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { must(t, syscall.Unmount(point, syscall.MNT_DETACH)) })
	before := mountOf(t, point)
	if !mountOf(t, point).Is(before) {
		t.Error("the same mount differs")
	}
	must(t, os.Rename(directory, directory+".old"))
	must(t, os.Mkdir(directory, 0o755))
	if mountOf(t, point).Is(before) {
		t.Error("the mount is that of the new directory")
	}
}
