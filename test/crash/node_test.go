package crash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/embeddedca"
)

// node is a node with the plugin's process on it, which comes and goes, and with
// what a kubelet does there.
type node struct {
	csi.NodeClient
	csi.IdentityClient
	t          testing.TB
	kubeletDir string
	config     string
	logs       *buffer
	process    *exec.Cmd
	calls      *interceptor
}

// newNode makes a node whose plugin is configured for the CA. It is not started.
// The lifetimes that pods may ask for begin at a second.
func newNode(t testing.TB, ca *embeddedca.CA) *node {
	t.Helper()
	directory, err := os.MkdirTemp("", "node-") // the test's own is too long for a socket
	must(t, err)
	n := &node{t: t, kubeletDir: filepath.Join(directory, "kubelet"), config: filepath.Join(directory, "step-csi.yaml"), logs: &buffer{}}
	must(t, os.MkdirAll(n.kubeletDir, 0o755))
	name, password := ca.Provisioner()
	must(t, os.WriteFile(filepath.Join(directory, "password"), []byte(password+"\n"), 0o600))
	must(t, os.WriteFile(n.config, []byte(fmt.Sprintf(`
issuers:
  default:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: password}
    duration: {default: 1h, max: 24h, min: 1s}
    roots: {refresh: 1s}
`, ca.URL(), ca.Fingerprint(), name)), 0o600))
	// One connection for all processes: each is found on the same path.
	connection, err := grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1, MaxDelay: 2 * time.Millisecond}}))
	must(t, err)
	n.NodeClient, n.IdentityClient = csi.NewNodeClient(connection), csi.NewIdentityClient(connection)
	t.Cleanup(func() {
		connection.Close()
		n.kill()
		for _, path := range n.mounts() {
			_ = syscall.Unmount(path, syscall.MNT_DETACH)
		}
		if err := os.RemoveAll(directory); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the plugin's log ends with:\n%s", n.logs.tail(200))
		}
	})
	return n
}

func (n *node) socket() string {
	return filepath.Join(n.kubeletDir, "plugins", driverName, "csi.sock")
}

func (n *node) command() *exec.Cmd {
	command := exec.Command(binary, "node", "--config", n.config, "--kubelet-dir", n.kubeletDir, "--node-name", "node-1", "--v", "4")
	command.Stdout, command.Stderr = n.logs, n.logs
	return command
}

// launch starts the plugin.
func (n *node) launch() {
	n.t.Helper()
	n.process = n.command()
	must(n.t, n.process.Start())
}

// start starts the plugin and waits until it answers.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	n.answers()
}

// startIntercepted starts the plugin so that decide says what becomes of its
// system calls, until n.calls is set to something else. Without it, the plugin
// answers.
func (n *node) startIntercepted(decide func(call) verdict) {
	n.t.Helper()
	n.process = n.command()
	n.calls = intercept(n.t, n.process, decide)
	if decide == nil {
		n.answers()
	}
}

// answers waits until the plugin answers. A call may still go to the process
// before, which is gone.
func (n *node) answers() {
	n.t.Helper()
	eventually(n.t, 30*time.Second, "the plugin answers", func() bool {
		ctx, cancel := n.context()
		defer cancel()
		_, err := n.Probe(ctx, &csi.ProbeRequest{})
		return err == nil
	})
}

// ended waits for the end of a process that is being killed.
func (n *node) ended() {
	if n.process != nil {
		_ = n.process.Wait()
		n.process = nil
	}
	if n.calls != nil {
		<-n.calls.alive.Done()
		n.calls = nil
	}
}

func (n *node) kill() {
	if n.process != nil {
		_ = n.process.Process.Kill()
	}
	n.ended()
}

// stop ends the plugin as a pod is ended. It leaves nothing of its own.
func (n *node) stop() {
	n.t.Helper()
	must(n.t, n.process.Process.Signal(syscall.SIGTERM))
	if err := n.process.Wait(); err != nil {
		n.t.Errorf("the plugin: %v", err)
	}
	n.process = nil
	n.ended()
	must(n.t, filepath.WalkDir(n.kubeletDir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && (!entry.IsDir() || entry.Name() == driverName) {
			n.t.Errorf("left behind: %s", path)
		}
		return err
	}))
}

// context is that of one call: longer than any should take, and no longer than
// an intercepted process lives.
func (n *node) context() (context.Context, context.CancelFunc) {
	parent := context.Background()
	if n.calls != nil {
		parent = n.calls.alive
	}
	return context.WithTimeout(parent, 30*time.Second)
}

// pod is a pod with one volume, as the kubelet sees it.
type pod struct {
	name       string
	attributes map[string]string
}

// with is the pod with another attribute.
func (p pod) with(key, value string) pod {
	p.attributes = maps.Clone(p.attributes)
	if p.attributes == nil {
		p.attributes = map[string]string{}
	}
	p.attributes[key] = value
	return p
}

func (p pod) volumeID() string {
	sum := sha256.Sum256([]byte(p.name))
	return "csi-" + hex.EncodeToString(sum[:])
}

func (n *node) target(p pod) string {
	return filepath.Join(n.kubeletDir, "pods", p.name, "volumes/kubernetes.io~csi/tls/mount")
}

// publish is one try of the kubelet.
func (n *node) publish(p pod) error {
	target := n.target(p)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	volumeContext := map[string]string{
		"csi.storage.k8s.io/ephemeral":           "true",
		"csi.storage.k8s.io/pod.name":            p.name,
		"csi.storage.k8s.io/pod.namespace":       "shop",
		"csi.storage.k8s.io/pod.uid":             p.name,
		"csi.storage.k8s.io/serviceAccount.name": "web",
	}
	maps.Copy(volumeContext, p.attributes)
	ctx, cancel := n.context()
	defer cancel()
	_, err := n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId:   p.volumeID(),
		TargetPath: target,
		Readonly:   true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "2000"}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: volumeContext,
	})
	return err
}

// unpublish is one try of the kubelet.
func (n *node) unpublish(p pod) error {
	ctx, cancel := n.context()
	defer cancel()
	_, err := n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: p.volumeID(), TargetPath: n.target(p)})
	return err
}

// health is what is wrong with the volume. It fails for one that the plugin does
// not know, or that is not mounted.
func (n *node) health(p pod) ([]*csi.VolumeHealth_VolumeHealthEntry, error) {
	ctx, cancel := n.context()
	defer cancel()
	answer, err := n.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: p.volumeID(), VolumePublishPath: n.target(p)})
	return answer.GetVolumeHealth().GetHealthStatuses(), err
}

func (n *node) mounts() []string {
	n.t.Helper()
	paths, err := tmpfs.List(driverName)
	must(n.t, err)
	return slices.DeleteFunc(paths, func(path string) bool { return !strings.HasPrefix(path, n.kubeletDir+"/") })
}

// expectGone checks that nothing is left of the pod's volume.
func (n *node) expectGone(p pod) {
	n.t.Helper()
	if _, err := os.Lstat(n.target(p)); !os.IsNotExist(err) {
		n.t.Errorf("%s: the target is still there: %v", p.name, err)
	}
	if slices.Contains(n.mounts(), n.target(p)) {
		n.t.Errorf("%s is still mounted", p.name)
	}
}

// buffer collects the output of processes: the newest of it, where it is much.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const maxLog = 8 << 20

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.b.Len() > maxLog {
		b.b.Next(maxLog / 2)
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// tail is the last lines.
func (b *buffer) tail(lines int) string {
	all := strings.Split(b.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
