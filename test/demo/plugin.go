package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flexstack/step-csi/test/embeddedca"
)

const driverName = "csi.step-ca.io"

// plugin is the node plugin's process. This program acts as its kubelet.
type plugin struct {
	kubeletDir string
	process    *exec.Cmd
	connection *grpc.ClientConn
	node       csi.NodeClient
	log        *log
}

const configuration = `issuers:
  default:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: password}
    duration: {default: %s, max: 24h, min: 1s}
`

func startPlugin(ctx context.Context, binary, directory string, ca *embeddedca.CA) (*plugin, error) {
	p := &plugin{kubeletDir: filepath.Join(directory, "kubelet"), log: &log{}}
	name, password := ca.Provisioner()
	config := filepath.Join(directory, "step-csi.yaml")
	text := fmt.Sprintf(configuration, ca.URL(), ca.Fingerprint(), name, lifetime)
	for path, content := range map[string]string{config: text, filepath.Join(directory, "password"): password} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(p.kubeletDir, 0o755); err != nil {
		return nil, err
	}
	p.process = exec.Command(binary, "node", "--config", config, "--kubelet-dir", p.kubeletDir, "--node-name", "demo-node", "--kubelet-register=false")
	// The demo may run in a pod, which the plugin must not take for its own.
	p.process.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KUBERNETES_SERVICE_HOST=") })
	p.process.Stdout, p.process.Stderr = p.log, p.log
	if err := p.process.Start(); err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient("unix://"+filepath.Join(p.kubeletDir, "plugins", driverName, "csi.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}}))
	if err != nil {
		return nil, err
	}
	p.connection, p.node = connection, csi.NewNodeClient(connection)
	return p, p.ready(ctx)
}

// ready waits until the plugin reports that it is ready.
func (p *plugin) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		answer, err := csi.NewIdentityClient(p.connection).Probe(ctx, &csi.ProbeRequest{})
		if err != nil {
			_ = p.stop()
			return fmt.Errorf("wait until the plugin is ready: %w\n%s", err, p.log.String())
		}
		if answer.GetReady().GetValue() {
			detail("ready after %s, pid %d", time.Since(start).Round(time.Millisecond), p.process.Process.Pid)
			return nil
		}
	}
}

// stop sends SIGTERM, as the kubelet does.
func (p *plugin) stop() error {
	_ = p.connection.Close()
	_ = p.process.Process.Signal(syscall.SIGTERM)
	if err := p.process.Wait(); err != nil {
		return fmt.Errorf("stop the plugin: %w", err)
	}
	return nil
}

// pod is a pod with one volume.
type pod struct {
	namespace, name, account string
	service                  string            // for service-names
	extra                    map[string]string // other attributes
}

func (d pod) uid() string  { return fmt.Sprintf("%x", sha256.Sum256([]byte(d.name)))[:32] }
func (d pod) host() string { return d.service + "." + d.namespace + ".svc.cluster.local" }

func (p *plugin) target(d pod) string {
	return filepath.Join(p.kubeletDir, "pods", d.uid(), "volumes/kubernetes.io~csi/tls/mount")
}

func (d pod) volumeID() string { return "csi-" + fmt.Sprintf("%x", sha256.Sum256([]byte(d.uid()))) }

// publish makes the call that the kubelet makes when the pod starts.
func (p *plugin) publish(ctx context.Context, d pod) (time.Duration, error) {
	volumeContext := map[string]string{
		"csi.storage.k8s.io/ephemeral":           "true",
		"csi.storage.k8s.io/pod.name":            d.name,
		"csi.storage.k8s.io/pod.namespace":       d.namespace,
		"csi.storage.k8s.io/pod.uid":             d.uid(),
		"csi.storage.k8s.io/serviceAccount.name": d.account,
		"renew-before":                           renewBefore.String(),
	}
	if d.service != "" {
		volumeContext["service-names"] = d.service
	}
	for key, value := range d.extra {
		volumeContext[key] = value
	}
	if err := os.MkdirAll(filepath.Dir(p.target(d)), 0o755); err != nil {
		return 0, err
	}
	start := time.Now()
	_, err := p.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId:   d.volumeID(),
		TargetPath: p.target(d),
		Readonly:   true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "2000"}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: volumeContext,
	})
	return time.Since(start), err
}

// unpublish makes the call that the kubelet makes after the pod has ended.
func (p *plugin) unpublish(ctx context.Context, d pod) error {
	_, err := p.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: d.volumeID(), TargetPath: p.target(d)})
	return err
}

// log collects the plugin's output.
type log struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(b)
}

func (l *log) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buffer.Bytes())
}

func (l *log) String() string { return string(l.Bytes()) }
