// Package integration tests the real binary: as a process, on real tmpfs
// mounts, with a real step-ca.
package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
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
	"github.com/flexstack/step-csi/test/sandbox"
)

// binary is step-csi, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	if directory := os.Getenv(serverOf); directory != "" {
		runServer(directory)
	}
	sandbox.Enter()
	// Tests that wait for time to pass do so side by side. Ginkgo, which the sanity
	// test brings, refuses -test.parallel on the command line.
	if err := flag.Lookup("test.parallel").Value.Set("8"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// A process with the race detector sleeps for a second before it exits.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	directory, err := os.MkdirTemp("", "step-csi-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(directory)
	if err := addHosts(directory); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binary = filepath.Join(directory, "step-csi")
	if out, err := buildBinary().CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build step-csi: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if left := leftovers(); left != "" {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		return 1
	}
	return code
}

// addHosts gives the tests' hosts their addresses, in the sandbox.
func addHosts(directory string) error {
	hosts := filepath.Join(directory, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n127.0.0.1 "+authorityHost+"\n127.0.0.2 "+authorityHost+"\n127.0.0.1 "+fleetingHost+"\n"), 0o644); err != nil {
		return err
	}
	return syscall.Mount(hosts, "/etc/hosts", "", syscall.MS_BIND, "")
}

// buildBinary has the race detector in it where there is a C compiler.
func buildBinary() *exec.Cmd {
	args := []string{"build", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", binary}
	if cgo, err := exec.Command("go", "env", "CGO_ENABLED").Output(); err == nil && strings.TrimSpace(string(cgo)) == "1" {
		args = append(args, "-race")
	}
	return exec.Command("go", append(args, "../../cmd/step-csi")...)
}

// leftovers looks for what a test should have taken away: mounts of the driver,
// its sockets, and its processes.
func leftovers() string {
	if paths, err := tmpfs.List(driverName); err != nil || len(paths) > 0 {
		return fmt.Sprintf("mounts %q, %v", paths, err)
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(sockets)) {
		// Other tests, which run beside these, have their own.
		if slices.ContainsFunc(kubeletDirs, func(directory string) bool { return strings.Contains(line, " "+directory+"/") }) {
			return "socket " + line
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err.Error()
	}
	for _, process := range processes {
		if target, err := os.Readlink(process); err == nil && strings.HasPrefix(target, binary) {
			return "process " + process + " of " + target
		}
	}
	return ""
}

const driverName = "csi.step-ca.io"

// kubeletDirs are those of all nodes so far.
var (
	kubeletDirs []string
	kubeletMu   sync.Mutex
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func startCA(t testing.TB) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{})
	must(t, err)
	t.Cleanup(ca.Stop)
	return ca
}

// authority is a running step-ca.
type authority interface {
	URL() string
	Fingerprint() string
	Provisioner() (name, password string)
}

// node is a node with the plugin's process on it.
type node struct {
	csi.NodeClient
	csi.IdentityClient
	t          testing.TB
	kubeletDir string
	config     string
	flags      []string         // more of them
	tokens     func(pod) string // that the kubelet sends, if it does
	logs       *buffer
	process    *exec.Cmd
	connection *grpc.ClientConn
}

// newNode makes a node whose plugin is configured for the CA, and starts it.
// The lifetimes that pods may ask for begin at a second.
func newNode(t testing.TB, ca authority) *node {
	t.Helper()
	n := prepareNode(t, ca)
	n.start()
	return n
}

func prepareNode(t testing.TB, ca authority) *node {
	t.Helper()
	directory := t.TempDir()
	n := &node{t: t, kubeletDir: filepath.Join(directory, "kubelet"), config: filepath.Join(directory, "step-csi.yaml"), logs: &buffer{}}
	must(t, os.MkdirAll(n.kubeletDir, 0o755))
	kubeletMu.Lock()
	kubeletDirs = append(kubeletDirs, n.kubeletDir)
	kubeletMu.Unlock()
	name, password := ca.Provisioner()
	must(t, os.WriteFile(filepath.Join(directory, "password"), []byte(password+"\n"), 0o600))
	must(t, os.WriteFile(n.config, []byte(fmt.Sprintf(`
issuers:
  default:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: password}
    duration: {default: 1h, max: 24h, min: 1s}
`, ca.URL(), ca.Fingerprint(), name)), 0o600))
	t.Cleanup(func() {
		n.stop()
		n.unmountAll()
		if t.Failed() {
			t.Logf("the plugin's log:\n%s", n.logs)
		}
	})
	return n
}

func (n *node) socket() string {
	return filepath.Join(n.kubeletDir, "plugins", driverName, "csi.sock")
}

// start starts the plugin and waits until it is ready.
func (n *node) start() {
	n.t.Helper()
	n.launch()
	deadline := time.Now().Add(60 * time.Second)
	ctx, cancel := context.WithDeadline(n.t.Context(), deadline)
	defer cancel()
	for {
		answer, err := n.Probe(ctx, &csi.ProbeRequest{})
		if err == nil && answer.GetReady().GetValue() {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("not ready: %v, %v", answer, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// launch starts the plugin.
func (n *node) launch() {
	n.t.Helper()
	args := []string{"node", "--config", n.config, "--kubelet-dir", n.kubeletDir, "--node-name", "node-1", "--v", "4"}
	n.process = exec.Command(binary, append(args, n.flags...)...)
	// Where it would write what it must not: a test looks there.
	n.process.Dir = filepath.Dir(n.config)
	n.process.Env = append(os.Environ(), "TMPDIR="+n.process.Dir)
	n.process.Stderr = n.logs
	n.process.Stdout = n.logs
	must(n.t, n.process.Start())
	n.dial()
}

// dial connects to the plugin.
func (n *node) dial() {
	n.t.Helper()
	connection, err := grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}}))
	must(n.t, err)
	n.connection = connection
	n.NodeClient, n.IdentityClient = csi.NewNodeClient(connection), csi.NewIdentityClient(connection)
}

// end signals the plugin and waits for it.
func (n *node) end(signal syscall.Signal) error {
	if n.process == nil {
		return nil
	}
	n.connection.Close()
	_ = n.process.Process.Signal(signal)
	err := n.process.Wait()
	n.process = nil
	return err
}

func (n *node) kill() { _ = n.end(syscall.SIGKILL) }

// stop ends the plugin as a pod is ended; it must exit cleanly.
func (n *node) stop() {
	if err := n.end(syscall.SIGTERM); err != nil {
		n.t.Errorf("the plugin: %v", err)
	}
}

// unmountAll takes away what a failed test has left mounted.
func (n *node) unmountAll() {
	paths, err := tmpfs.List(driverName)
	must(n.t, err)
	for _, path := range paths {
		if strings.HasPrefix(path, n.kubeletDir) {
			_ = syscall.Unmount(path, syscall.MNT_DETACH)
		}
	}
}

// pod is a pod with one volume, as the kubelet sees it.
type pod struct {
	name       string
	attributes map[string]string
	group      string
	uid        string
}

func (p pod) id() string {
	if p.uid != "" {
		return p.uid
	}
	return "uid-" + p.name
}

func (p pod) volumeID() string {
	sum := sha256.Sum256([]byte(p.id()))
	return "csi-" + hex.EncodeToString(sum[:])
}

func (n *node) target(p pod) string {
	return filepath.Join(n.kubeletDir, "pods", p.id(), "volumes/kubernetes.io~csi/tls/mount")
}

// publishRequest is what the kubelet sends for the pod.
func (n *node) publishRequest(p pod) *csi.NodePublishVolumeRequest {
	target := n.target(p)
	must(n.t, os.MkdirAll(filepath.Dir(target), 0o755))
	volumeContext := map[string]string{
		"csi.storage.k8s.io/ephemeral":           "true",
		"csi.storage.k8s.io/pod.name":            p.name,
		"csi.storage.k8s.io/pod.namespace":       "shop",
		"csi.storage.k8s.io/pod.uid":             p.id(),
		"csi.storage.k8s.io/serviceAccount.name": "web",
	}
	for key, value := range p.attributes {
		volumeContext[key] = value
	}
	return &csi.NodePublishVolumeRequest{
		Secrets:    n.secrets(p),
		VolumeId:   p.volumeID(),
		TargetPath: target,
		Readonly:   true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: p.group}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: volumeContext,
	}
}

func (n *node) secrets(p pod) map[string]string {
	if n.tokens == nil {
		return nil
	}
	return map[string]string{"csi.storage.k8s.io/serviceAccount.tokens": fmt.Sprintf(
		`{"step-csi": {"token": %q, "expirationTimestamp": %q}}`, n.tokens(p), time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano))}
}

func (n *node) tryPublish(p pod) error {
	_, err := n.NodePublishVolume(n.t.Context(), n.publishRequest(p))
	return err
}

func (n *node) publish(p pod) {
	n.t.Helper()
	must(n.t, n.tryPublish(p))
}

func (n *node) unpublish(p pod) {
	n.t.Helper()
	// Also in a cleanup, when the test's own context is over.
	_, err := n.NodeUnpublishVolume(context.WithoutCancel(n.t.Context()), &csi.NodeUnpublishVolumeRequest{VolumeId: p.volumeID(), TargetPath: n.target(p)})
	must(n.t, err)
}

func (n *node) mounts() []string {
	n.t.Helper()
	paths, err := tmpfs.List(driverName)
	must(n.t, err)
	return slices.DeleteFunc(paths, func(path string) bool { return !strings.HasPrefix(path, n.kubeletDir+"/") })
}

// eventually waits for a condition that real time brings about.
func eventually(t testing.TB, within time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// buffer collects a process's output.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var _ io.Writer = (*buffer)(nil)
