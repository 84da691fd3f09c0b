package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// inPod is in the environment of every container in Kubernetes.
const inPod = "KUBERNETES_SERVICE_HOST=10.96.0.1"

// pods makes the directory of the node's pods a mount with this propagation, until the
// test ends.
func pods(t *testing.T, n *node.Node, propagation uintptr) (path string) {
	t.Helper()
	path = filepath.Join(n.KubeletDir, "pods")
	node.Must(t, os.MkdirAll(path, 0o755))
	node.Must(t, syscall.Mount(path, path, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { _ = syscall.Unmount(path, syscall.MNT_DETACH) })
	node.Must(t, syscall.Mount("", path, "", propagation, ""))
	return path
}

// In a pod whose mount of the kubelet's directory is private, such as on a node whose root
// is private, the plugin publishes nothing: the pod's event and the plugin's readiness say
// why and what to do. It is live, and repairs itself once the mount is shared. Volumes that
// are mounted are published again and renewed.
func TestPrivateMountIsRefused(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := node.New(t, binary, ca)
	n.Env = []string{inPod}
	path := pods(t, n, syscall.MS_SHARED)
	n.Flags = []string{"--http-address", "127.0.0.1:0"}
	n.Start()
	mounted := node.Pod{Name: "mounted", Attributes: map[string]string{"duration": "4s"}}
	n.Publish(mounted)

	node.Must(t, syscall.Mount("", path, "", syscall.MS_PRIVATE, ""))
	n.Stop()
	n.Launch()
	n.WaitServing()
	node.Eventually(t, patience, "the plugin has the CA", func() bool { return n.Logs.Count(logs.Connected) == 2 })
	issued, p := ca.Signs(), node.Pod{Name: "web-0"}
	err := n.TryPublish(p)
	for _, want := range []string{"volumes cannot reach pods", "the mount " + path + " is not shared", "the node node-1", `run "mount --make-rshared /"`, "mountPropagation: Bidirectional"} {
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("publish: %v, want %q", err, want)
		}
	}
	if ca.Signs() != issued {
		t.Error("the CA signed for a volume that cannot be mounted")
	}
	n.ExpectGone(p)
	node.Eventually(t, patience, "the plugin logs it when it starts", func() bool {
		return n.Logs.Has("Volumes cannot reach pods; refusing to publish volumes")
	})
	expectReady(t, health(t, n), http.StatusServiceUnavailable, "volumes cannot reach pods")
	expectLive(t, health(t, n), http.StatusOK, "ok")
	n.Publish(mounted)
	renewed := n.Logs.Count(logs.Renewed)
	node.Eventually(t, patience, "a renewal", func() bool { return n.Logs.Count(logs.Renewed) > renewed })

	node.Must(t, syscall.Mount("", path, "", syscall.MS_SHARED, ""))
	expectReady(t, health(t, n), http.StatusOK, "ok")
	n.Publish(p)
	read(t, n.Target(p))
	for _, p := range []node.Pod{p, mounted} {
		n.Unpublish(p)
		n.ExpectGone(p)
	}
}

func expectReady(t *testing.T, address string, status int, text string) {
	t.Helper()
	node.Eventually(t, patience, "/readyz: "+http.StatusText(status)+" "+text, func() bool {
		got, body := get(t, address+"/readyz")
		return got == status && strings.Contains(body, text)
	})
}

// The plugin has a mount namespace of its own, as in a pod. What it mounts reaches the
// kubelet's namespace if the mount is shared (Bidirectional). A slave (HostToContainer) or a
// private mount (None) is refused, where a pod would find an empty directory. Without a pod,
// a private mount is no error, because the kubelet can have the same namespace.
func TestPropagation(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for name, c := range map[string]struct {
		propagation string // of the plugin's mounts
		env         string
		want        string // in the error; empty if the volume reaches the kubelet
	}{
		"shared in a pod":  {"unchanged", inPod, ""},
		"slave in a pod":   {"slave", inPod, "mountPropagation: Bidirectional"},
		"private in a pod": {"private", inPod, "mountPropagation: Bidirectional"},
		"shared":           {"unchanged", "", ""},
		"slave":            {"slave", "", "run the node plugin in the mount namespace of the kubelet"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := node.New(t, binary, ca)
			pods(t, n, syscall.MS_SHARED)
			n.Process = n.Command()
			n.Process.Args = append([]string{"unshare", "--mount", "--propagation", c.propagation, string(binary)}, n.Process.Args[1:]...)
			n.Process.Path = "/usr/bin/unshare"
			n.Process.Env = append(n.Process.Env, c.env)
			node.Must(t, n.Process.Start())
			n.WaitServing()
			p := node.Pod{Name: "web-0"}
			err := n.TryPublish(p)
			if c.want != "" {
				if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), c.want) {
					t.Errorf("publish: %v", err)
				}
				return
			}
			node.Must(t, err)
			read(t, n.Target(p))
			n.Unpublish(p)
			n.ExpectGone(p)
		})
	}
}

// In a user namespace, even its root cannot make volumes, with or without a mount namespace
// that belongs to it. The error says so, instead of asking for capabilities that it has.
func TestUserNamespaceIsRefused(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	for name, flags := range map[string]uintptr{"user namespace": 0, "user and mount namespace": syscall.CLONE_NEWNS} {
		command := binary.Command("node", "--config", n.Config, "--kubelet-dir", n.KubeletDir)
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1000}}
		command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | flags, UidMappings: ids, GidMappings: ids}
		late := time.AfterFunc(time.Minute, func() { _ = command.Process.Kill() })
		out, err := command.CombinedOutput()
		late.Stop()
		if err == nil || !strings.Contains(string(out), "not allowed to mount in a user namespace: rootless clusters") {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}
