package tmpfs

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is a mount in the mount namespace of the process.
type Mount struct {
	id uint64
	// root is the path of the mount's root in its file system. It changes when the
	// directory that was mounted is renamed.
	root string
	// Point is where it is mounted. In a chroot, it is empty for the mount that contains
	// the root directory, because the mount table lacks this mount.
	Point string
	// Shared and Slave are its propagation: a mount below a shared mount appears in all
	// mounts of its peer group. A mount below a slave appears nowhere else, unless the
	// slave is also shared. See mount_namespaces(7).
	Shared, Slave bool
}

// MountOf returns the mount that the open file or directory is on.
func MountOf(f *os.File) (Mount, error) {
	id, line, err := mountLine(f)
	if err != nil || line == "" {
		return Mount{id: id}, err
	}
	// See proc_pid_mountinfo(5). The kernel escapes blanks in paths.
	fields := strings.Fields(line)
	end := slices.Index(fields, "-")
	if end < 6 {
		return Mount{}, fmt.Errorf("%s: its line in the mount table is incomplete: %q", f.Name(), line)
	}
	m := Mount{id: id, root: fields[3], Point: unescape.Replace(fields[4])}
	for _, field := range fields[6:end] {
		m.Shared = m.Shared || strings.HasPrefix(field, "shared:")
		m.Slave = m.Slave || strings.HasPrefix(field, "master:")
	}
	return m, nil
}

// Is tells whether it is the same mount, of the same directory, whatever its propagation.
func (m Mount) Is(other Mount) bool { return m.id == other.id && m.root == other.root }

// mountLine returns the id of the mount that f is on, and its line in the mount table, if
// there is one.
func mountLine(f *os.File) (id uint64, line string, err error) {
	var attributes unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &attributes); err != nil {
		return 0, "", os.NewSyscallError("statx", err)
	}
	id = attributes.Mnt_id
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return id, "", fmt.Errorf("read the mount table: %w", err)
	}
	prefix := strconv.FormatUint(id, 10) + " "
	for line := range strings.Lines(string(table)) {
		if strings.HasPrefix(line, prefix) {
			return id, line, nil
		}
	}
	return id, "", nil
}
