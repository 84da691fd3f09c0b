package integration

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
)

// kept is the set of capabilities that the plugin keeps, in the format of /proc.
var kept = fmt.Sprintf("%016x", 1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_CHOWN|1<<unix.CAP_DAC_READ_SEARCH|1<<unix.CAP_FOWNER)

const none = "0000000000000000"

// taskStatus reads the fields of /proc/PID/task/TID/status, for every thread.
func taskStatus(t *testing.T, pid int) map[string]map[string]string {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	node.Must(t, err)
	all := map[string]map[string]string{}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		node.Must(t, err)
		fields := map[string]string{}
		for line := range strings.Lines(string(content)) {
			key, value, _ := strings.Cut(line, ":")
			fields[key] = strings.TrimSpace(value)
		}
		all[path] = fields
	}
	return all
}

func expectStatus(t *testing.T, pid int, want map[string]string) {
	t.Helper()
	tasks := taskStatus(t, pid)
	if len(tasks) < 2 {
		t.Errorf("only %d threads", len(tasks))
	}
	for path, fields := range tasks {
		for key, value := range want {
			if fields[key] != value {
				t.Errorf("%s: %s is %q, want %q", path, key, fields[key], value)
			}
		}
	}
}

// inheriting gives the processes that the test starts an inheritable capability. The
// thread ends with the test.
func inheriting(t *testing.T, capability int) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	node.Must(t, unix.Capget(&header, &data[0]))
	data[capability/32].Inheritable |= 1 << (capability % 32)
	node.Must(t, unix.Capset(&header, &data[0]))
	node.Must(t, unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(capability), 0, 0))
}

// Every thread has exactly these capabilities and cannot gain more, whatever the
// plugin started with. That includes the threads that calls create.
func TestHardeningOfEveryThread(t *testing.T) {
	n := node.New(t, binary, startCA(t))
	inheriting(t, unix.CAP_NET_RAW)
	n.Start()
	want := map[string]string{
		"CapEff": kept, "CapPrm": kept, "CapInh": none, "CapAmb": none, "CapBnd": none,
		"NoNewPrivs": "1", "Umask": "0077",
	}
	expectStatus(t, n.Process.Process.Pid, want)
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	expectStatus(t, n.Process.Process.Pid, want)
	n.Unpublish(p)
	for _, path := range []string{n.Socket(), n.RegistrationSocket()} {
		info, err := os.Lstat(path)
		node.Must(t, err)
		owner := info.Sys().(*syscall.Stat_t)
		if info.Mode() != fs.ModeSocket|0o600 || owner.Uid != 0 || owner.Gid != 0 {
			t.Errorf("%s: %v %d:%d", path, info.Mode(), owner.Uid, owner.Gid)
		}
	}
}

// Only root can access the kubelet's directories. All calls work there, and the
// files get their owner and group.
func TestHardeningAllowsAllCalls(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	t.Run("group", func(t *testing.T) {
		t.Parallel()
		testAllCalls(t, ca, node.Pod{Name: "short-0", Group: "2000", Attributes: map[string]string{"duration": "12s", "reuse-private-key": "true"}}, 0o440, 0, 2000)
	})
	// Only the owner can read the files, and the plugin.
	t.Run("owner", func(t *testing.T) {
		t.Parallel()
		testAllCalls(t, ca, node.Pod{Name: "short-0", Attributes: map[string]string{
			"duration": "12s", "reuse-private-key": "true", "owner-uid": "999", "file-mode": "0400",
		}}, 0o400, 999, 0)
	})
}

// testAllCalls publishes the pod's volume, waits for renewals before and after a restart, and
// unpublishes the volume. The key has the mode, the owner and the group, and stays the same.
func testAllCalls(t *testing.T, ca *embeddedca.CA, p node.Pod, mode fs.FileMode, uid, gid uint32) {
	n := node.New(t, binary, ca)
	node.Must(t, os.Chmod(n.KubeletDir, 0o750))
	n.RefreshRoots(time.Second)
	n.Start()
	request := n.MustRequest(p)
	for _, path := range components(n, p) {
		if path != n.Target(p) {
			node.Must(t, os.Chmod(path, 0o750))
		}
	}
	_, err := n.NodePublishVolume(t.Context(), request)
	node.Must(t, err)
	first := read(t, n.Target(p)).leaf()
	key := first.PublicKey
	renewed := func() bool { return !read(t, n.Target(p)).leaf().Equal(first) }
	node.Eventually(t, time.Minute, "a renewal", renewed)
	n.Kill()
	n.Start()
	_, err = n.NodePublishVolume(t.Context(), request) // until the kubelet republishes, nothing is renewed
	node.Must(t, err)
	first = read(t, n.Target(p)).leaf()
	node.Eventually(t, time.Minute, "a renewal after a restart", renewed)
	info, err := os.Stat(filepath.Join(n.Target(p), "tls.key"))
	node.Must(t, err)
	if owner := info.Sys().(*syscall.Stat_t); info.Mode() != mode || owner.Uid != uid || owner.Gid != gid {
		t.Errorf("the key has mode %v and owner %d:%d", info.Mode(), owner.Uid, owner.Gid)
	}
	if now := read(t, n.Target(p)).leaf().PublicKey; !now.(*ecdsa.PublicKey).Equal(key) {
		t.Error("the key was not read, and so not reused")
	}
	n.Unpublish(p)
	if mounted := n.Mounts(); len(mounted) > 0 {
		t.Errorf("mounted: %q", mounted)
	}
}

// Other processes of the same user, which could attach to any other process, cannot
// read the plugin's memory.
func TestHardeningHidesMemory(t *testing.T) {
	n := newNode(t, startCA(t))
	withoutBounding(t, unix.CAP_SYS_PTRACE) // other gets no more capabilities than this thread has below
	other := exec.Command("sleep", "60")
	node.Must(t, other.Start())
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	memory := func(process *exec.Cmd) error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/mem", process.Process.Pid))
		if err == nil {
			f.Close()
		}
		return err
	}
	withoutEffective(t, unix.CAP_SYS_PTRACE, func() {
		if err := memory(n.Process); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("open the plugin's memory: %v, want a permission error", err)
		}
		if err := memory(other); err != nil {
			t.Errorf("open the memory of another process: %v", err)
		}
	})
}

// withoutEffective runs do on a thread without one effective capability.
// Capabilities are per thread.
func withoutEffective(t *testing.T, capability int, do func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	node.Must(t, unix.Capget(&header, &had[0]))
	without := had
	without[capability/32].Effective &^= 1 << (capability % 32)
	node.Must(t, unix.Capset(&header, &without[0]))
	do()
	node.Must(t, unix.Capset(&header, &had[0]))
}

// A plugin that crashes leaves no core dump, where other processes do.
func TestHardeningDumpsNoCore(t *testing.T) {
	var had unix.Rlimit
	node.Must(t, unix.Getrlimit(unix.RLIMIT_CORE, &had))
	node.Must(t, unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: had.Max, Max: had.Max}))
	defer func() { node.Must(t, unix.Setrlimit(unix.RLIMIT_CORE, &had)) }()
	// GOTRACEBACK=crash makes a Go crash dump core; the race detector disables core
	// dumps by default.
	t.Setenv("GOTRACEBACK", "crash")
	t.Setenv("GORACE", "atexit_sleep_ms=0 disable_coredump=0")
	n := newNode(t, startCA(t))
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", n.Process.Process.Pid))
	node.Must(t, err)
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("the plugin's limits allow a core dump:\n%s", limits)
	}
	control := exec.Command("sh", "-c", "kill -ABRT $$")
	control.Dir = t.TempDir()
	_ = control.Run()
	process := n.Process
	n.Signal(syscall.SIGQUIT)
	if err := n.Wait(); err == nil {
		t.Error("the plugin exited without an error")
	}
	ended := process.ProcessState.Sys().(syscall.WaitStatus)
	if !ended.Signaled() || ended.CoreDump() {
		t.Errorf("the plugin ended with %v, core dump %v", process.ProcessState, ended.CoreDump())
	}
	if cores, err := filepath.Glob(filepath.Join(process.Dir, "core*")); err != nil || len(cores) > 0 {
		t.Errorf("core dumps %q, error %v", cores, err)
	}
	if !control.ProcessState.Sys().(syscall.WaitStatus).CoreDump() {
		t.Log("this machine writes no core dumps: the test checked only the limit")
	}
}

// withoutBounding drops a capability from the bounding set of this thread and of the
// processes that the test starts. The thread cannot regain it, and ends with the
// test.
func withoutBounding(t *testing.T, capability uintptr) {
	t.Helper()
	runtime.LockOSThread()
	node.Must(t, unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0))
}

// A plugin without CAP_SYS_ADMIN says that it may not mount, and not that it could
// not keep the capability.
func TestHardeningWithoutAdmin(t *testing.T) {
	n := node.New(t, binary, startCA(t))
	withoutBounding(t, unix.CAP_SYS_ADMIN)
	out, err := binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not allowed to mount: run as root with CAP_SYS_ADMIN") {
		t.Errorf("%v: %s", err, out)
	}
}

// A plugin that cannot clear the bounding set still has these capabilities only.
func TestHardeningWithoutSetpcap(t *testing.T) {
	n := node.New(t, binary, startCA(t))
	withoutBounding(t, unix.CAP_SETPCAP)
	n.Start()
	expectStatus(t, n.Process.Process.Pid, map[string]string{
		"CapEff": kept, "CapPrm": kept, "CapInh": none, "CapAmb": none, "NoNewPrivs": "1",
	})
	p := node.Pod{Name: "web-0", Group: "2000"}
	n.Publish(p)
	n.Unpublish(p)
}

// The registration authority needs no capability.
func TestHardeningOfTheAuthority(t *testing.T) {
	r := startAuthority(t, startCA(t), 1, "")
	node.Must(t, newAttack(t, r).call(r.client(t)))
	expectStatus(t, r.replicas[0].process.Process.Pid, map[string]string{
		"CapEff": none, "CapPrm": none, "CapInh": none, "CapAmb": none, "CapBnd": none,
		"NoNewPrivs": "1", "Umask": "0077",
	})
}

// When the hardened authority cannot read a file, the error names the file and the
// change.
func TestHardeningNamesUnreadableFiles(t *testing.T) {
	t.Parallel()
	r := startAuthority(t, startCA(t), 1, "")
	for _, name := range []string{"step-csi.yaml", "password"} {
		replica := r.prepare("127.0.0.1", "")
		node.Must(t, os.Chown(filepath.Join(filepath.Dir(replica.config), name), 1234, 1234))
		out, err := binary.Command("ra", "--config", replica.config, "--listen", "127.0.0.1:0").CombinedOutput()
		if err == nil || !strings.Contains(string(out), name+": permission denied: the owner and mode of the file must allow user 0") {
			t.Errorf("the authority: %s: %v: %s", name, err, out)
		}
	}
}

// A process's environment is easier to read than its files. step-csi reads no secret from
// it: only the address of the API server, the node's name and the path of a socket.
func TestHardeningOfTheEnvironment(t *testing.T) {
	reads := regexp.MustCompile(`(os|syscall|unix)\.(Getenv|LookupEnv|Environ|ExpandEnv)\b[^,\n)]*`)
	var found []string
	for _, directory := range []string{"cmd/step-csi", "driver", "issuer"} {
		for _, path := range tree(t, filepath.Join("../..", directory)) {
			if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				continue
			}
			source, err := os.ReadFile(path)
			node.Must(t, err)
			found = append(found, reads.FindAllString(string(source), -1)...)
		}
	}
	if got, want := strings.Join(found, " "), `os.Getenv("KUBERNETES_SERVICE_HOST" os.Getenv("NODE_NAME" os.Getenv(statusSocket`; got != want {
		t.Errorf("the code reads %s, want only %s", got, want)
	}
}
