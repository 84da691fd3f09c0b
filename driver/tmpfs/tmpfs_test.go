package tmpfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Enter()
	os.Exit(m.Run())
}

const source = "csi.example"

func options() tmpfs.Options { return tmpfs.Options{Source: source, Size: 1 << 20, Inodes: 32} }

func openDirectory(t *testing.T) (*tmpfs.Directory, string) {
	t.Helper()
	path := t.TempDir()
	d, err := tmpfs.OpenDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// attached mounts a volume with one file at the target "mount".
func attached(t *testing.T, d *tmpfs.Directory) {
	t.Helper()
	tree, err := tmpfs.Create(options())
	must(t, err)
	defer tree.Close()
	write(t, tree, "file", "first")
	must(t, tree.SetRecord([]byte("what it is")))
	target, err := d.Make("mount")
	must(t, err)
	defer target.Close()
	must(t, tree.Attach(target.File))
	t.Cleanup(func() { detach(t, d) })
}

func detach(t *testing.T, d *tmpfs.Directory) {
	t.Helper()
	target, err := d.Open("mount")
	must(t, err)
	defer target.Close()
	if record, _ := tmpfs.Record(target); record != nil {
		must(t, tmpfs.Detach(target))
	}
}

func write(t *testing.T, tree *tmpfs.Tree, name, content string) {
	t.Helper()
	root, err := tree.Root()
	must(t, err)
	defer root.Close()
	must(t, root.WriteFile(name, []byte(content), 0o444))
}

func TestSupported(t *testing.T) { must(t, tmpfs.Supported()) }

func TestAttachedMountIsReadOnlyForRoot(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	file := filepath.Join(path, "mount", "file")
	if b, err := os.ReadFile(file); err != nil || string(b) != "first" {
		t.Fatalf("%q, %v", b, err)
	}
	for name, err := range map[string]error{
		"write":  os.WriteFile(file, []byte("x"), 0o644),
		"create": os.WriteFile(filepath.Join(path, "mount", "other"), nil, 0o644),
		"link":   os.Symlink("/etc/passwd", filepath.Join(path, "mount", "link")),
		"remove": os.Remove(file),
		"chmod":  os.Chmod(file, 0o777),
		"xattr":  unix.Setxattr(filepath.Join(path, "mount"), "trusted.step-csi", []byte("x"), 0),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMountOptions(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	line := mountLine(t, filepath.Join(path, "mount"))
	for _, want := range []string{"ro,nosuid,nodev,noexec", " tmpfs " + source + " ", "size=1024k", "nr_inodes=32", "noswap"} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
}

// mountLine returns the line of the mount table about the path.
func mountLine(t *testing.T, path string) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, " "+path+" ") {
			return line
		}
	}
	t.Fatalf("nothing is mounted at %s", path)
	return ""
}

// The kernel gets the context: without SELinux it rejects it, and with SELinux it rejects
// one that is not in the policy.
func TestUnknownContext(t *testing.T) {
	o := options()
	o.SELinuxContext = "no:such:context"
	tree, err := tmpfs.Create(o)
	if err == nil {
		tree.Close()
	}
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("create: %v", err)
	}
}

func TestCloneWritesAndTheMountStaysReadOnly(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	target, err := d.Open("mount")
	must(t, err)
	defer target.Close()
	clone, err := tmpfs.Clone(target)
	must(t, err)
	defer clone.Close()
	write(t, clone, "second", "new")
	must(t, clone.SetRecord([]byte("changed")))
	if b, err := os.ReadFile(filepath.Join(path, "mount", "second")); err != nil || string(b) != "new" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.Remove(filepath.Join(path, "mount", "second")); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through the mount: %v", err)
	}
	if b, err := tmpfs.Record(target); err != nil || string(b) != "changed" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestListFindsWholeVolumesOnly(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	// The kubelet mounts a subPath like this.
	bound := filepath.Join(path, "bound")
	must(t, os.WriteFile(bound, nil, 0o600))
	must(t, syscall.Mount(filepath.Join(path, "mount", "file"), bound, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { must(t, syscall.Unmount(bound, 0)) })
	paths, err := tmpfs.List(t.Context(), source)
	must(t, err)
	if want := []string{filepath.Join(path, "mount")}; !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
	if relative, ok := d.Relative(paths[0]); relative != "mount" || !ok {
		t.Errorf("%q, %v", relative, ok)
	}
}

func TestRecordOfForeignMount(t *testing.T) {
	d, path := openDirectory(t)
	made, err := d.Make("plain")
	must(t, err)
	if record, err := tmpfs.Record(made.File); record != nil || err != nil {
		t.Errorf("a plain directory: %q, %v", record, err)
	}
	made.Close()
	again, err := d.Make("plain")
	must(t, err)
	again.Abandon() // Abandon keeps a directory that existed before
	again.Close()
	must(t, syscall.Mount("other", filepath.Join(path, "plain"), "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, syscall.Unmount(filepath.Join(path, "plain"), 0)) })
	target, err := d.Open("plain")
	must(t, err)
	defer target.Close()
	if _, err := tmpfs.Record(target); !errors.Is(err, tmpfs.ErrForeign) {
		t.Errorf("another mount: %v", err)
	}
}

func TestDetachWhileAFileIsOpen(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	file, err := os.Open(filepath.Join(path, "mount", "file"))
	must(t, err)
	defer file.Close()
	detach(t, d)
	must(t, d.Remove("mount"))
	if paths, err := tmpfs.List(t.Context(), source); err != nil || len(paths) > 0 {
		t.Errorf("%q, %v", paths, err)
	}
	if _, err := file.Read(make([]byte, 1)); err != nil {
		t.Errorf("read from the file that was open: %v", err)
	}
	// Remove is idempotent.
	must(t, d.Remove("mount"))
	must(t, os.Mkdir(filepath.Join(path, "mount"), 0o755)) // for the cleanup
}

func TestNoSymbolicLinkIsFollowed(t *testing.T) {
	d, path := openDirectory(t)
	elsewhere := t.TempDir()
	must(t, os.Mkdir(filepath.Join(elsewhere, "mount"), 0o755))
	must(t, os.Symlink(elsewhere, filepath.Join(path, "link")))
	must(t, os.Mkdir(filepath.Join(path, "real"), 0o755))
	must(t, os.Symlink(elsewhere, filepath.Join(path, "real", "mount")))
	// A link is not followed even if its target is below the directory.
	must(t, os.MkdirAll(filepath.Join(path, "other", "mount"), 0o755))
	must(t, os.Symlink("other", filepath.Join(path, "inner")))
	for _, relative := range []string{"link/mount", "link", "real/mount", "../x", "real/../../x", "inner", "inner/mount"} {
		if f, err := d.Open(relative); err == nil {
			t.Errorf("%s opened as %s", relative, f.Name())
		}
		if _, err := d.Make(relative); err == nil {
			t.Errorf("Make created %s", relative)
		}
	}
	if err := d.Remove("link/mount"); err == nil {
		t.Error("Remove followed a link")
	}
}

func TestSizeIsBounded(t *testing.T) {
	tree, err := tmpfs.Create(options())
	must(t, err)
	defer tree.Close()
	root, err := tree.Root()
	must(t, err)
	defer root.Close()
	if err := root.WriteFile("big", make([]byte, 2<<20), 0o444); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB into 1 MiB: %v", err)
	}
	if err := tree.SetRecord(make([]byte, tmpfs.MaxRecord+1)); err == nil {
		t.Error("SetRecord accepted a record that is too long")
	}
	must(t, tree.SetRecord(make([]byte, tmpfs.MaxRecord-512)))
}

// Grow repeats noswap, which Linux 6.4 to 6.17 require. The kernel shows that Grow does: a
// tmpfs that has noswap keeps it, and one that was made without it cannot get it.
func TestGrowKeepsNoSwap(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	must(t, os.Mkdir(filepath.Join(path, "swaps"), 0o755))
	must(t, unix.Mount(source, filepath.Join(path, "swaps"), "tmpfs", 0, "size=1m,nr_inodes=32"))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(path, "swaps"), 0)) })
	for name, want := range map[string]error{"mount": nil, "swaps": unix.EINVAL} {
		target, err := d.Open(name)
		must(t, err)
		defer target.Close()
		clone, err := tmpfs.Clone(target)
		must(t, err)
		defer clone.Close()
		if err := clone.Grow(2<<20, 64); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	for _, want := range []string{"size=2048k", "nr_inodes=64", "noswap"} {
		if line := mountLine(t, filepath.Join(path, "mount")); !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
}
