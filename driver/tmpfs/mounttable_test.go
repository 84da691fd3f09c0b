package tmpfs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// mountAt mounts a tmpfs with the source, which may be empty, until the test ends.
func mountAt(t *testing.T, mountSource, path string) {
	t.Helper()
	must(t, os.MkdirAll(path, 0o755))
	must(t, syscall.Mount(mountSource, path, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, syscall.Unmount(path, syscall.MNT_DETACH)) })
}

// Everyone who may mount on the node chooses the source of a mount, and a pod chooses
// the paths in its volumes. No line of the mount table hides the volumes, or makes
// something else a volume.
func TestListToleratesEveryMount(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	elsewhere := t.TempDir()
	for i, text := range []string{
		"", " ", "\t", "\n", "\r", "\v", "\f", "\u00a0", "\u0085", "\u2028", "\xff", "#", "-", " - ", "\\", `\0`, `\777`, "//deleted",
		"x - tmpfs " + source + " rw", "x\n36 35 0:30 / " + elsewhere + " ro - tmpfs " + source + " ro\n",
		"\u00a0-\u00a0tmpfs\u00a0" + source + "\u00a0rw", source + "\u00a0x", source + " ", " " + source, strings.Repeat("x", 4000),
	} {
		mountAt(t, text, filepath.Join(elsewhere, "source", fmt.Sprint(i)))
		if text != "" && !strings.ContainsAny(text, "/") && len(text) < 255 {
			mountAt(t, "other", filepath.Join(elsewhere, "point", text))
			// The kubelet mounts a subPath of a pod's own volume like this.
			bound := filepath.Join(elsewhere, "bound", fmt.Sprint(i))
			must(t, os.MkdirAll(bound, 0o755))
			must(t, syscall.Mount(filepath.Join(elsewhere, "point", text), bound, "", syscall.MS_BIND, ""))
			t.Cleanup(func() { must(t, syscall.Unmount(bound, syscall.MNT_DETACH)) })
		}
	}
	mountWithoutSource(t, filepath.Join(elsewhere, "none"))
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if !strings.Contains(string(table), " - tmpfs  rw") {
		t.Fatalf("no mount has an empty source:\n%s", table)
	}
	expectList(t, filepath.Join(path, "mount"))
}

// The kernel prints "none" for a mount that was made without a source.
func mountWithoutSource(t *testing.T, path string) {
	t.Helper()
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(context)
	must(t, unix.FsconfigCreate(context))
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, os.MkdirAll(path, 0o755))
	must(t, unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { must(t, syscall.Unmount(path, syscall.MNT_DETACH)) })
}

// An overlay with hundreds of layers has a line that is longer than the buffers of
// parsers.
func TestListToleratesLongLines(t *testing.T) {
	d, path := openDirectory(t)
	attached(t, d)
	layers, point := t.TempDir(), t.TempDir()
	long := filepath.Join(layers, strings.Repeat("x", 250))
	must(t, os.Mkdir(long, 0o755))
	context, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(context)
	for i := range 300 {
		layer := filepath.Join(long, fmt.Sprint(i))
		must(t, os.Mkdir(layer, 0o755))
		if err := unix.FsconfigSetString(context, "lowerdir+", layer); errors.Is(err, unix.EINVAL) && i == 0 {
			t.Log("this kernel is older than 6.7 and has no such mounts") // mount(2) takes one page of options
			return
		} else {
			must(t, err)
		}
	}
	must(t, unix.FsconfigCreate(context))
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.MoveMount(fd, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { must(t, syscall.Unmount(point, syscall.MNT_DETACH)) })
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if !slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool { return len(line) > 64<<10 }) {
		t.Fatal("no line is longer than 64 KiB")
	}
	expectList(t, filepath.Join(path, "mount"))
}

// The kubelet's directory may have any name. The mount table escapes it.
func TestListUnescapesPaths(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b\tc\nd\\ef#g - tmpfs "+source+" rw")
	must(t, os.Mkdir(path, 0o755))
	d, err := tmpfs.OpenDirectory(path)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	attached(t, d)
	expectList(t, filepath.Join(path, "mount"))
	paths, err := tmpfs.List(t.Context(), source)
	must(t, err)
	if relative, below := d.Relative(paths[0]); relative != "mount" || !below {
		t.Errorf("%q, %t", relative, below)
	}
}

func expectList(t *testing.T, want ...string) {
	t.Helper()
	if paths, err := tmpfs.List(t.Context(), source); err != nil || !slices.Equal(paths, want) {
		t.Errorf("got %q, %v, want %q", paths, err, want)
	}
}
