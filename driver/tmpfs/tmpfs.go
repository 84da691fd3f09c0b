// Package tmpfs is the kernel side of a volume. It creates a detached tmpfs, and
// attaches it, complete and read-only, at its target. It rewrites an attached tmpfs
// through a detached writable clone. An extended attribute holds the volume's record.
//
// It uses Linux's file-descriptor based mount calls (fsopen, fsmount,
// mount_setattr, move_mount, open_tree; see https://lwn.net/Articles/759499/).
// They work on open directories, so no path is resolved twice. Package payload writes
// the files.
package tmpfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/mount-utils"
)

// record is the extended attribute that holds a volume's record. Names in
// trusted.* are visible only to CAP_SYS_ADMIN in the initial user namespace:
// not to workloads. See xattr(7).
const record = "trusted.step-csi"

// MaxRecord is the largest size of a record, in bytes.
const MaxRecord = 16 << 10

// Options of a new tmpfs.
type Options struct {
	// Source is the device in the mount table. List searches for it.
	Source string
	// Size of the tmpfs in bytes. The tmpfs uses memory only for its contents.
	Size int64
	// Inodes is the number of files, directories and links it can hold.
	Inodes int
	// SELinuxContext is the context of the root directory and of all files, or empty. A
	// kernel without SELinux rejects it.
	SELinuxContext string
}

// configure sets the options of a new file system.
func (o Options) configure(set func(key, value string) error) error {
	options := [][2]string{
		{"source", o.Source},
		{"size", strconv.FormatInt(o.Size, 10)},
		{"nr_inodes", strconv.Itoa(o.Inodes)},
		{"mode", "0755"},
	}
	if o.SELinuxContext != "" {
		options = append(options, [2]string{"context", o.SELinuxContext})
	}
	for _, option := range options {
		if err := set(option[0], option[1]); err != nil {
			return fmt.Errorf("fsconfig %s=%q: %w", option[0], option[1], err)
		}
	}
	return nil
}

// Tree is a detached mount. Only its holder sees it. It disappears when it is closed,
// or when the process ends.
type Tree struct{ file *os.File }

// Create makes a new, empty, writable tmpfs.
func Create(o Options) (*Tree, error) {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(context)
	set := func(key, value string) error { return unix.FsconfigSetString(context, key, value) }
	if err := o.configure(set); err != nil {
		return nil, err
	}
	if err := setNoSwap(context); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return &Tree{os.NewFile(uintptr(fd), "tmpfs")}, nil
}

// setNoSwap keeps keys from reaching a swap device. The option needs Linux 6.4; an older
// kernel returns EINVAL and keeps the other options.
func setNoSwap(context int) error {
	if err := unix.FsconfigSetFlag(context, "noswap"); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("fsconfig noswap: %w", err)
	}
	return nil
}

// Clone returns a writable view of the tmpfs that is attached at target. The
// attached mount stays read-only.
func Clone(target *os.File) (*Tree, error) {
	fd, err := unix.OpenTree(int(target.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	t := &Tree{os.NewFile(uintptr(fd), target.Name())}
	if err := t.setAttributes(&unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Grow makes the file system at least as large as given. It keeps all other options. The limit
// alone uses no memory.
func (t *Tree) Grow(size int64, inodes int) error {
	usage, err := Stat(t.file)
	if err != nil || usage.Bytes >= size && usage.Inodes >= int64(inodes) {
		return err
	}
	context, err := unix.Fspick(int(t.file.Fd()), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fspick", err)
	}
	defer unix.Close(context)
	for key, value := range map[string]int64{"size": max(size, usage.Bytes), "nr_inodes": max(int64(inodes), usage.Inodes)} {
		if err := unix.FsconfigSetString(context, key, strconv.FormatInt(value, 10)); err != nil {
			return fmt.Errorf("fsconfig %s=%d: %w", key, value, err)
		}
	}
	// Linux 6.4 to 6.17 reject every change of a tmpfs with noswap that does not repeat the
	// option. See https://git.kernel.org/torvalds/c/3cd1548a278c7d6a9bdef1f1866e7cf66bfd3518.
	if err := setNoSwap(context); err != nil {
		return err
	}
	return os.NewSyscallError("fsconfig", unix.FsconfigReconfigure(context))
}

func (t *Tree) setAttributes(a *unix.MountAttr) error {
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(int(t.file.Fd()), "", unix.AT_EMPTY_PATH, a))
}

// Close closes the mount. An attached mount stays attached.
func (t *Tree) Close() error { return t.file.Close() }

// Root opens the root directory of the mount.
func (t *Tree) Root() (*os.Root, error) { return Root(t.file) }

// SetRecord stores the volume's record, at most MaxRecord bytes.
func (t *Tree) SetRecord(value []byte) error {
	if len(value) > MaxRecord {
		return fmt.Errorf("the record of %d bytes is longer than %d", len(value), MaxRecord)
	}
	return os.NewSyscallError("setxattr", unix.Setxattr(path(t.file), record, value, 0))
}

// Attach makes the mount read-only and attaches it at target, an empty directory. Other
// processes see either nothing or the complete volume.
func (t *Tree) Attach(target *os.File) error {
	if err := t.setAttributes(&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	err := unix.MoveMount(int(t.file.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// Root opens the root directory of the mount at target.
func Root(target *os.File) (*os.Root, error) { return os.OpenRoot(path(target)) }

// path returns a path of an open directory that does not resolve its name again.
func path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// ErrForeign means that another mount, not one of this package, is at the target.
var ErrForeign = errors.New("something else is mounted there; unmount it")

// Record returns the record of the tmpfs that is attached at target, or nil if
// nothing is mounted there. The error is ErrForeign for any other mount. A record that
// is longer than MaxRecord is not from SetRecord: Record returns an empty one.
func Record(target *os.File) ([]byte, error) {
	var attributes unix.Statx_t
	if err := unix.Statx(int(target.Fd()), "", unix.AT_EMPTY_PATH, 0, &attributes); err != nil {
		return nil, os.NewSyscallError("statx", err)
	}
	if attributes.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, nil
	}
	value := make([]byte, MaxRecord)
	n, err := unix.Getxattr(path(target), record, value)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return nil, fmt.Errorf("%s: %w", target.Name(), ErrForeign)
	case errors.Is(err, unix.ERANGE):
		return []byte{}, nil
	case err != nil:
		return nil, os.NewSyscallError("getxattr", err)
	}
	return value[:n], nil
}

// Device returns the number of the file system that f is in. All mounts of one tmpfs have
// the same number, and no other file system has it at the same time.
func Device(f *os.File) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return s.Dev, nil
}

// Device returns the number of the file system.
func (t *Tree) Device() (uint64, error) { return Device(t.file) }

// IsOf tells whether a tmpfs of the given source is attached at target, by the mount
// table. Unlike the record, a container cannot change the mount table of this process.
func IsOf(target *os.File, source string) (bool, error) {
	_, line, err := mountLine(target)
	// See proc_pid_mountinfo(5): after the separator come the type and the source.
	_, system, _ := strings.Cut(line, " - ")
	return err == nil && strings.HasPrefix(system, "tmpfs "+source+" "), err
}

// Detach unmounts the mount at target at once, even if processes have open files there.
// These processes keep their files.
func Detach(target *os.File) error {
	return os.NewSyscallError("umount2", unix.Unmount(path(target), unix.MNT_DETACH))
}

// Usage is how much of the tmpfs at target is in use.
type Usage struct{ Bytes, BytesFree, Inodes, InodesFree int64 }

// Stat returns the usage of the file system at target.
func Stat(target *os.File) (Usage, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(target.Fd()), &s); err != nil {
		return Usage{}, os.NewSyscallError("fstatfs", err)
	}
	return Usage{
		Bytes:      int64(s.Blocks) * s.Bsize,
		BytesFree:  int64(s.Bavail) * s.Bsize,
		Inodes:     int64(s.Files),
		InodesFree: int64(s.Ffree),
	}, nil
}

// List returns the paths at which a whole tmpfs of the given source is attached, in the
// mount namespace of the process. It parses only the lines of the mount table that can
// be such a mount. Other mounts, which it does not know, cannot make it fail:
// mount.ParseMountInfo fails on the whole table if a source is empty.
func List(ctx context.Context, source string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return list(ctx, string(table), source), nil
}

func list(ctx context.Context, table, source string) (paths []string) {
	// The kernel escapes blanks, so no path contains this. See show_mountinfo in
	// https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/fs/proc_namespace.c.
	own := " - tmpfs " + source + " "
	lines := slices.DeleteFunc(strings.Split(table, "\n"), func(line string) bool { return !strings.Contains(line, own) })
	mounts, err := parseMountInfo(lines...)
	if err != nil {
		mounts = nil
		for _, line := range lines {
			parsed, err := parseMountInfo(line)
			if err != nil {
				klog.FromContext(ctx).Error(err, "Cannot parse a volume's line in the mount table; the volume is not renewed until the kubelet publishes it again", "line", line)
			}
			mounts = append(mounts, parsed...)
		}
	}
	for _, m := range mounts {
		// A different root means that a subPath bind-mounted a part of a volume.
		if m.FsType == "tmpfs" && m.Source == source && m.Root == "/" {
			paths = append(paths, unescape.Replace(m.MountPoint))
		}
	}
	return paths
}

// unescape replaces what the kernel escapes in a path, and mount-utils leaves.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\043`, "#", `\134`, `\`)

// parseMountInfo parses lines of a mount table.
func parseMountInfo(lines ...string) ([]mount.MountInfo, error) {
	fd, err := unix.MemfdCreate("mountinfo", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "mountinfo")
	defer file.Close()
	if _, err := file.WriteString(strings.Join(lines, "\n")); err != nil {
		return nil, err
	}
	return mount.ParseMountInfo(path(file))
}
