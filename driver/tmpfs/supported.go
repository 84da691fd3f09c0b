package tmpfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// minimumKernel is the first Linux version with mount_setattr, the newest system call
// that this package needs.
const minimumKernel = "5.12"

// Supported tries every step of making a volume except attaching it. The error says
// what the machine lacks.
func Supported() error {
	tree, err := Create(Options{Source: "probe", Size: 1 << 16, Inodes: 16})
	if err != nil {
		return unsupported(err)
	}
	defer tree.Close()
	if err := tree.SetRecord([]byte("probe")); err != nil {
		return unsupported(err)
	}
	return unsupported(tree.setAttributes(&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
}

func unsupported(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("needs Linux %s or later, and this is %s: %w", minimumKernel, release(), err)
	case errors.Is(err, unix.EPERM) && inUserNamespace():
		// Also as its root, a process cannot set trusted.* there.
		return fmt.Errorf("not allowed to mount in a user namespace: rootless clusters (rootless Docker or Podman with kind or minikube, k3s --rootless, "+
			"Usernetes) and system containers (sysbox, unprivileged LXC) cannot run the node plugin; "+
			"run the nodes as root of the machine, and the node plugin's pod without hostUsers: false: %w", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("not allowed to mount: run as root with CAP_SYS_ADMIN, in a pod with securityContext.privileged: true: %w", err)
	}
	return fmt.Errorf("cannot make a tmpfs: %w", err)
}

// inUserNamespace tells whether the process is in another user namespace than the initial
// one, which maps every user id to itself. See user_namespaces(7).
func inUserNamespace() bool {
	users, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !slices.Equal(strings.Fields(string(users)), []string{"0", "0", "4294967295"})
}

func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "older"
	}
	return unix.ByteSliceToString(name.Release[:])
}
