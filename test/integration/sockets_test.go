package integration

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// patience is for what the plugin does within seconds on a quiet machine.
const patience = time.Minute

// registered calls the registration socket, as the kubelet does.
func registered(t *testing.T, n *node.Node) error {
	t.Helper()
	connection, err := grpc.NewClient("unix://"+n.RegistrationSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	node.Must(t, err)
	defer connection.Close()
	info, err := registration.NewRegistrationClient(connection).GetInfo(t.Context(), &registration.InfoRequest{})
	if err == nil && info.GetEndpoint() != n.Socket() {
		err = errors.New(info.GetEndpoint())
	}
	return err
}

// expectServing waits until the plugin answers on both sockets, and publishes through a new connection.
func expectServing(t *testing.T, n *node.Node) {
	t.Helper()
	expectSockets(t, n)
	k := node.NewKubelet(t, n.KubeletDir)
	defer k.Close()
	p := node.Pod{Name: "fresh"}
	k.Publish(p)
	read(t, k.Target(p))
	k.Unpublish(p)
}

// expectSockets waits until the plugin answers on both sockets, through new connections.
func expectSockets(t *testing.T, n *node.Node) {
	t.Helper()
	node.Eventually(t, patience, "the plugin serves on both sockets", func() bool {
		connection, err := net.Dial("unix", n.Socket())
		if err != nil {
			return false
		}
		connection.Close()
		return registered(t, n) == nil
	})
}

// withHealth starts the plugin with its health port, and returns the address.
func withHealth(t *testing.T, n *node.Node) (address string) {
	t.Helper()
	n.Flags = append(n.Flags, "--http-address", "127.0.0.1:0")
	n.Start()
	return health(t, n)
}

// health returns the address at which the last process serves its health.
func health(t *testing.T, n *node.Node) (address string) {
	t.Helper()
	node.Eventually(t, patience, "the plugin serves its health", func() bool {
		log := n.Logs.String()
		at := strings.LastIndex(log, logs.ServingHealth+` address="`)
		if at >= 0 {
			address, _, _ = strings.Cut(log[at+len(logs.ServingHealth+` address="`):], `"`)
		}
		return at >= 0
	})
	return "http://" + address
}

// expectLive waits until /livez has the status.
func expectLive(t *testing.T, address string, status int, text string) {
	t.Helper()
	node.Eventually(t, patience, "/livez: "+http.StatusText(status)+" "+text, func() bool {
		got, body := get(t, address+"/livez")
		return got == status && strings.Contains(body, text)
	})
}

// deadSocket puts a socket without a server in the place of path, in one step.
func deadSocket(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".dead", Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return errors.Join(l.Close(), os.Rename(path+".dead", path))
}

// removeAll removes a directory in which the plugin may write meanwhile: it saves the roots and
// serves again on lost sockets, so that one pass can find a file in an emptied directory.
func removeAll(path string) error {
	for end := time.Now().Add(patience); ; {
		err := os.RemoveAll(path)
		if !errors.Is(err, syscall.ENOTEMPTY) || time.Now().After(end) {
			return err
		}
	}
}

// replaceDirectory puts an empty directory in the place of path, and renames to path.old what was
// there. It does so in one step, because the plugin also puts something there as soon as it is empty.
func replaceDirectory(path string) error {
	if err := os.Mkdir(path+".new", 0o755); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, path+".new", unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return os.Rename(path+".new", path+".old")
}

// Somebody removes or replaces a socket or its directory while the plugin runs. The same
// process serves again within seconds, on both sockets. The volume stays, calls in progress
// continue, and the roots that the next process needs are saved again.
func TestLostSocketsAreServedAgain(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*node.Node) error{
		"directory":                     func(n *node.Node) error { return removeAll(filepath.Dir(n.Socket())) },
		"all plugins":                   func(n *node.Node) error { return removeAll(filepath.Dir(filepath.Dir(n.Socket()))) },
		"CSI socket":                    func(n *node.Node) error { return os.Remove(n.Socket()) },
		"CSI socket is renamed":         func(n *node.Node) error { return os.Rename(n.Socket(), n.Socket()+".old") },
		"CSI socket of a dead process":  func(n *node.Node) error { return deadSocket(n.Socket()) },
		"registration socket":           func(n *node.Node) error { return os.Remove(n.RegistrationSocket()) },
		"registration directory":        func(n *node.Node) error { return removeAll(filepath.Dir(n.RegistrationSocket())) },
		"registration of a dead plugin": func(n *node.Node) error { return deadSocket(n.RegistrationSocket()) },
		"both": func(n *node.Node) error {
			return errors.Join(removeAll(filepath.Dir(n.Socket())), removeAll(filepath.Dir(n.RegistrationSocket())))
		},
		"directory is renamed, and there is another": func(n *node.Node) error {
			return replaceDirectory(filepath.Dir(n.Socket()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := startCA(t)
			n := node.New(t, binary, ca)
			address := withHealth(t, n)
			roots := filepath.Join(filepath.Dir(n.Socket()), "trusted-roots.json")
			node.Eventually(t, patience, "the plugin saves the roots", func() bool { _, err := os.Lstat(roots); return err == nil })
			p, slowPod := node.Pod{Name: "web-0"}, node.Pod{Name: "slow-0"}
			n.Publish(p)
			release := slow(ca)
			published, signs := make(chan error, 1), ca.Signs()
			go func() { published <- n.TryPublish(slowPod) }()
			node.Eventually(t, patience, "the CA receives the request", func() bool { return ca.Signs() > signs })

			for range 2 { // the new sockets, too
				again := n.Logs.Count(logs.ServingAgain)
				node.Must(t, lose(n))
				node.Eventually(t, patience, "the plugin serves again", func() bool { return n.Logs.Count(logs.ServingAgain) > again })
				node.Must(t, removeAll(filepath.Dir(n.Socket())+".old"))
				expectSockets(t, n)
			}
			close(release)
			node.Must(t, <-published)
			expectServing(t, n)
			expectLive(t, address, http.StatusOK, "ok")
			node.Eventually(t, patience, "the roots are saved again", func() bool { _, err := os.Lstat(roots); return err == nil })
			read(t, n.Target(p))
			for _, p := range []node.Pod{p, slowPod} {
				n.Publish(p)
				n.Unpublish(p)
				n.ExpectGone(p)
			}
			_ = os.Remove(n.Socket() + ".old")
			n.Stop() // it is the same process
			n.ExpectNothingLeft()
		})
	}
}

// What is in the place of a socket is not removed, unless it is a socket that nobody
// serves. The plugin says so once, fails its liveness probe, and serves again as soon as it
// can.
func TestSomethingElseAtASocketsPath(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for name, path := range map[string]func(*node.Node) string{
		"CSI socket":          func(n *node.Node) string { return n.Socket() },
		"registration socket": func(n *node.Node) string { return n.RegistrationSocket() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := node.New(t, binary, ca)
			address := withHealth(t, n)
			path := path(n)
			node.Must(t, replaceDirectory(path))
			node.Must(t, os.Remove(path+".old"))
			expectLive(t, address, http.StatusServiceUnavailable, path)
			node.Eventually(t, patience, "the plugin says what is wrong", func() bool { return n.Logs.Has("this file is not a socket; remove it") })
			time.Sleep(2 * 2 * time.Second) // two more checks
			if count := n.Logs.Count("this file is not a socket; remove it"); count != 1 {
				t.Errorf("logged %d times", count)
			}
			node.Must(t, os.Remove(path))
			expectServing(t, n)
			expectLive(t, address, http.StatusOK, "ok")
		})
	}
}

// A CA that does not answer, with many pods that wait for it, is no reason to restart the
// plugin.
func TestLiveWithAHangingCA(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := node.New(t, binary, ca)
	address := withHealth(t, n)
	release := slow(ca)
	results := make(chan error)
	const many = 40
	for i := range many {
		go func() { results <- n.TryPublish(node.Pod{Name: fmt.Sprint("web-", i)}) }()
	}
	node.Eventually(t, patience, "the CA receives requests", func() bool { return ca.Signs() > 0 })
	for range 20 {
		if status, body := get(t, address+"/livez"); status != http.StatusOK {
			t.Errorf("livez: %d %q", status, body)
		}
		time.Sleep(200 * time.Millisecond)
	}
	close(release)
	for range many {
		<-results // calls that took too long have failed; the kubelet repeats them
	}
	for i := range many {
		p := node.Pod{Name: fmt.Sprint("web-", i)}
		node.Eventually(t, patience, p.Name+" has its volume", func() bool { return n.TryPublish(p) == nil })
		n.Unpublish(p)
	}
}

// A new plugin has started while the sockets of the old one were gone. The old one ends and
// leaves the new one's sockets. They do not take the sockets from each other in turns.
func TestAnotherPluginServesOnTheSockets(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	old := n.Process
	node.Must(t, old.Process.Signal(syscall.SIGSTOP))
	node.Must(t, os.Remove(n.Socket()))
	node.Must(t, os.Remove(n.RegistrationSocket()))
	next := &node.Node{Kubelet: node.NewKubelet(t, n.KubeletDir), Binary: binary, Config: n.Config, Logs: &node.Log{}}
	next.Start()
	defer next.Stop()
	sockets := inodes(t, n)
	node.Must(t, old.Process.Signal(syscall.SIGCONT))
	if err := n.Wait(); err == nil || !n.Logs.Has("another process serves on this socket") {
		t.Errorf("the old plugin's exit: %v", err)
	}
	time.Sleep(3 * 2 * time.Second) // three checks of the new plugin
	if now := inodes(t, n); now != sockets {
		t.Errorf("the sockets were %v, and are %v", sockets, now)
	}
	if next.Logs.Has(logs.ServingAgain) {
		t.Error("the old plugin removed the sockets of the new one")
	}
	// Kubernetes starts the old one again: it does not start, and removes nothing.
	out, err := binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process serves on this socket") {
		t.Errorf("the old plugin, started again: %v: %s", err, out)
	}
	next.Publish(p)
	next.Unpublish(p)
}

// inodes returns the inode numbers of both sockets.
func inodes(t *testing.T, n *node.Node) (all [2]uint64) {
	t.Helper()
	for i, path := range []string{n.Socket(), n.RegistrationSocket()} {
		var s syscall.Stat_t
		node.Must(t, syscall.Lstat(path, &s))
		all[i] = s.Ino
	}
	return all
}

// In a pod, the plugin's directory is a mount of its own. The plugin stops without an
// error and leaves the directory. If the directory is removed on the node, which also
// removes the mount in the pod, or if it is renamed, the plugin ends, and the next
// container has both again.
func TestDirectoryIsAMount(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	directory := filepath.Dir(n.Socket())
	// What the kubelet and the container runtime do: make the directory, and mount it
	// in the mount namespace of the container.
	start := func() {
		t.Helper()
		node.Must(t, os.MkdirAll(directory, 0o755))
		n.Process = n.Command()
		n.Process.Args = append([]string{"sh", "-c", `mount --bind "$0" "$0" && exec "$@"`, directory}, n.Process.Args...)
		n.Process.Path = "/bin/sh"
		if n.Process.SysProcAttr == nil {
			n.Process.SysProcAttr = &syscall.SysProcAttr{}
		}
		n.Process.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNS
		node.Must(t, n.Process.Start())
		n.WaitServing()
	}
	const lost = "somebody has removed or replaced this directory on the node"
	ends := func(lose func() error) {
		t.Helper()
		start()
		before := n.Logs.Count(lost)
		node.Must(t, lose())
		if err := n.Wait(); err == nil || n.Logs.Count(lost) == before {
			t.Errorf("the plugin's exit: %v", err)
		}
	}
	start()
	n.Stop()
	expectOnlyRoots(t, directory)
	ends(func() error { return removeAll(directory) })
	ends(func() error { return replaceDirectory(directory) })
	start()
	node.Must(t, os.Remove(n.Socket())) // this one it can serve again
	node.Eventually(t, patience, "the plugin serves again", func() bool { return n.Logs.Has(logs.ServingAgain) })
	n.WaitServing()
	n.Stop()
}
