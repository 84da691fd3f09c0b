package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/test/node"
)

// calls are the system calls of the mount and file work. Before each of them, the
// kernel asks the test whether to make it: see seccomp_unotify(2). So the tests cover
// every call that the code makes, also calls that are added later, and the code needs
// no fault points.
var calls = map[uintptr]call{
	unix.SYS_FSOPEN:        {name: "fsopen", changes: true},
	unix.SYS_FSCONFIG:      {name: "fsconfig", changes: true, descriptor: true},
	unix.SYS_FSMOUNT:       {name: "fsmount", changes: true},
	unix.SYS_FSPICK:        {name: "fspick", changes: true},
	unix.SYS_OPEN_TREE:     {name: "open_tree", changes: true},
	unix.SYS_MOUNT_SETATTR: {name: "mount_setattr", changes: true},
	unix.SYS_MOVE_MOUNT:    {name: "move_mount", changes: true},
	unix.SYS_UMOUNT2:       {name: "umount2", changes: true},
	unix.SYS_MKDIRAT:       {name: "mkdirat", changes: true},
	unix.SYS_SYMLINKAT:     {name: "symlinkat", changes: true},
	unix.SYS_LINKAT:        {name: "linkat", changes: true},
	unix.SYS_RENAMEAT:      {name: "renameat", changes: true},
	unix.SYS_RENAMEAT2:     {name: "renameat2", changes: true},
	unix.SYS_UNLINKAT:      {name: "unlinkat", changes: true},
	unix.SYS_FCHMOD:        {name: "fchmod", changes: true, descriptor: true},
	unix.SYS_FCHMODAT:      {name: "fchmodat", changes: true},
	unix.SYS_FCHMODAT2:     {name: "fchmodat2", changes: true},
	unix.SYS_FCHOWN:        {name: "fchown", changes: true, descriptor: true},
	unix.SYS_FCHOWNAT:      {name: "fchownat", changes: true},
	unix.SYS_FTRUNCATE:     {name: "ftruncate", changes: true, descriptor: true},
	unix.SYS_UTIMENSAT:     {name: "utimensat", changes: true},
	unix.SYS_WRITE:         {name: "write", changes: true, descriptor: true},
	unix.SYS_SETXATTR:      {name: "setxattr", changes: true},
	unix.SYS_LSETXATTR:     {name: "lsetxattr", changes: true},
	unix.SYS_FSETXATTR:     {name: "fsetxattr", changes: true, descriptor: true},
	unix.SYS_CLOSE:         {name: "close", changes: true, descriptor: true},
	unix.SYS_OPENAT:        {name: "openat"},
	unix.SYS_OPENAT2:       {name: "openat2"},
	unix.SYS_STATX:         {name: "statx"},
	unix.SYS_READLINKAT:    {name: "readlinkat"},
	unix.SYS_GETDENTS64:    {name: "getdents64", descriptor: true},
	unix.SYS_GETXATTR:      {name: "getxattr"},
}

// call is a system call.
type call struct {
	name string
	// changes is false for a call that only reads. To be killed before such a call
	// has the same effect as to be killed before the next one that changes something.
	changes bool
	// descriptor is true if the first argument is the file descriptor that the call
	// works on. The call counts only if that is a file or a mount.
	descriptor bool
}

func (c call) String() string { return c.name }

// toExec is the variable with the program that the test binary executes, intercepted.
const toExec = "STEP_CSI_TEST_INTERCEPT"

// interceptor decides about the system calls of one process.
type interceptor struct {
	listener int
	alive    context.Context // ends with the process

	mu     sync.Mutex
	decide func(call) verdict
}

// verdict is what happens to a call. The zero value makes it; else it fails with errno,
// or its process is killed.
type verdict struct {
	kill  bool
	errno unix.Errno
}

// intercept starts the command. decide gives the verdict for each call; nil makes all
// calls.
func intercept(t testing.TB, command *exec.Cmd, decide func(call) verdict) *interceptor {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	node.Must(t, err)
	theirs := os.NewFile(uintptr(pair[1]), "intercepted")
	defer unix.Close(pair[0])
	if command.Env == nil {
		command.Env = os.Environ()
	}
	command.Env = append(command.Env, toExec+"="+command.Path)
	command.Path = "/proc/self/exe"
	command.ExtraFiles = []*os.File{theirs}
	err = command.Start()
	theirs.Close()
	node.Must(t, err)
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	node.Must(t, err)
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("the process to intercept said %d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	node.Must(t, err)
	alive, end := context.WithCancel(context.Background())
	i := &interceptor{listener: fds[0], alive: alive, decide: decide}
	go func() {
		defer end()
		i.serve()
	}()
	return i
}

// execIntercepted installs the filter and executes the program, if this process was
// started by intercept. Else it returns.
func execIntercepted() {
	program, ok := os.LookupEnv(toExec)
	if !ok {
		return
	}
	_ = os.Unsetenv(toExec)
	// The filter belongs to this thread, and to the program that it executes.
	runtime.LockOSThread()
	listener, err := installFilter()
	if err == nil {
		err = unix.Sendmsg(3, []byte{0}, unix.UnixRights(listener), nil, 0)
	}
	if err == nil {
		unix.CloseOnExec(3)
		err = syscall.Exec(program, os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "intercept:", err)
	os.Exit(1)
}

// installFilter makes the kernel ask about all calls.
func installFilter() (listener int, err error) {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}}
	for number := range calls {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(number), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return 0, os.NewSyscallError("seccomp", errno)
	}
	return int(fd), nil
}

// notification and answer are the kernel's struct seccomp_notif and
// seccomp_notif_resp.
type notification struct {
	id     uint64
	pid    uint32
	flags  uint32
	number int32
	arch   uint32
	ip     uint64
	args   [6]uint64
}

type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// serve answers until the process has ended.
func (i *interceptor) serve() {
	defer unix.Close(i.listener)
	for {
		events := []unix.PollFd{{Fd: int32(i.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(events, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if events[0].Revents&unix.POLLHUP != 0 {
			return
		}
		if events[0].Revents&unix.POLLIN == 0 {
			continue
		}
		var n notification
		// It fails if the process was killed meanwhile.
		if i.control(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) != nil {
			continue
		}
		a := answer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		switch v := i.verdict(n); {
		case v.kill:
			// The whole process, whichever of its threads this is.
			_ = unix.Kill(int(n.pid), unix.SIGKILL)
			continue
		case v.errno != 0:
			a.flags, a.errno = 0, -int32(v.errno)
		}
		_ = i.control(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a))
	}
}

func (i *interceptor) control(request uintptr, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(i.listener), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}

// verdict asks decide, for calls on files and mounts.
func (i *interceptor) verdict(n notification) verdict {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.decide == nil {
		return verdict{}
	}
	c := calls[uintptr(n.number)]
	if c.descriptor && !ofFile(n.pid, int(int32(n.args[0]))) {
		return verdict{}
	}
	if n.number == unix.SYS_OPENAT && n.args[2]&unix.O_CREAT != 0 {
		c = call{name: "openat(O_CREAT)", changes: true}
	}
	return i.decide(c)
}

// ofFile tells whether the descriptor is a file, a directory, a mount, or a mount that
// is being made. Sockets, pipes, and those of Go's scheduler are not.
func ofFile(pid uint32, fd int) bool {
	path, err := os.Readlink(filepath.Join("/proc", fmt.Sprint(pid), "fd", fmt.Sprint(fd)))
	return err == nil && (strings.HasPrefix(path, "/") || path == "anon_inode:[fscontext]")
}

// set replaces decide. Nil makes all calls.
func (i *interceptor) set(decide func(call) verdict) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.decide = decide
}
