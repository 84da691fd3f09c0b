package tmpfs

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
)

// SELinux tells whether SELinux is on, enforcing or permissive, so that mounts have a
// context. proc is /proc. The kernel registers selinuxfs only if it has started with
// SELinux. Without a policy, every process has the context "kernel". Unlike selinuxfs
// itself, both are visible in a container.
func SELinux(proc fs.FS) (bool, error) {
	systems, err := fs.ReadFile(proc, "filesystems")
	if err != nil || !slices.Contains(strings.Fields(string(systems)), "selinuxfs") {
		return false, err
	}
	context, err := fs.ReadFile(proc, "self/attr/current")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.TrimRight(string(context), "\x00\n") != "kernel", err
}
