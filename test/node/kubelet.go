package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
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
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// Driver is the driver's name.
const Driver = "csi.step-ca.io"

// callTimeout is that of the kubelet.
const callTimeout = 2 * time.Minute

// Kubelet calls the plugin over its socket, as the kubelet does.
type Kubelet struct {
	csi.NodeClient
	csi.IdentityClient
	T          testing.TB
	KubeletDir string           // the plugin's --kubelet-dir
	Tokens     func(Pod) string // service account tokens; none are sent if it is nil
	// Until cancels all calls when it ends, if it is not nil.
	Until      context.Context
	connection *grpc.ClientConn

	mu        sync.Mutex
	published map[string]Pod // by volume id
}

// NewKubelet makes a kubelet with this directory. Volumes that are still mounted
// in it are unmounted when the test ends.
func NewKubelet(t testing.TB, directory string) *Kubelet {
	t.Helper()
	k := &Kubelet{T: t, KubeletDir: directory}
	// One connection for all processes that serve on the socket, one after the
	// other. A call waits until there is one.
	retry := backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1, MaxDelay: 2 * time.Millisecond}
	connection, err := grpc.NewClient("unix://"+k.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)), grpc.WithIdleTimeout(0), grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry}))
	Must(t, err)
	k.connection = connection
	k.NodeClient, k.IdentityClient = csi.NewNodeClient(connection), csi.NewIdentityClient(connection)
	t.Cleanup(func() {
		k.Close()
		for _, path := range k.Mounts() {
			_ = syscall.Unmount(path, syscall.MNT_DETACH)
		}
	})
	return k
}

// Close closes the connection to the plugin. The end of the test does so, too.
func (k *Kubelet) Close() { k.connection.Close() }

// Socket is where the plugin listens unless its flags say otherwise.
func (k *Kubelet) Socket() string {
	return filepath.Join(k.KubeletDir, "plugins", Driver, "csi.sock")
}

// RegistrationSocket is where the kubelet finds the plugin.
func (k *Kubelet) RegistrationSocket() string {
	return filepath.Join(k.KubeletDir, "plugins_registry", Driver+"-reg.sock")
}

// Register makes the calls by which the kubelet registers the plugin, with this result.
func (k *Kubelet) Register(status *registration.RegistrationStatus) error {
	ctx, cancel := k.context()
	defer cancel()
	connection, err := grpc.NewClient("unix://"+k.RegistrationSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := registration.NewRegistrationClient(connection)
	if _, err := client.GetInfo(ctx, &registration.InfoRequest{}); err != nil {
		return err
	}
	_, err = client.NotifyRegistrationStatus(ctx, status)
	return err
}

// Target is the path at which the pod's volume is mounted.
func (k *Kubelet) Target(p Pod) string {
	return filepath.Join(k.KubeletDir, "pods", p.ID(), "volumes/kubernetes.io~csi", cmp.Or(p.Volume, "tls"), "mount")
}

// disconnected waits until calls no longer go to a process that has ended.
func (k *Kubelet) disconnected() {
	for k.connection.GetState() == connectivity.Ready {
		time.Sleep(time.Millisecond)
	}
}

func (k *Kubelet) context() (context.Context, context.CancelFunc) {
	parent := k.Until
	if parent == nil {
		parent = context.Background()
	}
	return context.WithTimeout(parent, callTimeout)
}

// Request makes the directory for the pod's volume, and returns what the kubelet
// sends to publish it.
func (k *Kubelet) Request(p Pod) (*csi.NodePublishVolumeRequest, error) {
	target := k.Target(p)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return nil, err
	}
	volumeContext := map[string]string{
		"csi.storage.k8s.io/ephemeral":           "true",
		"csi.storage.k8s.io/pod.name":            p.Name,
		"csi.storage.k8s.io/pod.namespace":       cmp.Or(p.Namespace, "shop"),
		"csi.storage.k8s.io/pod.uid":             p.ID(),
		"csi.storage.k8s.io/serviceAccount.name": "web",
	}
	maps.Copy(volumeContext, p.Attributes)
	request := &csi.NodePublishVolumeRequest{
		VolumeId:   p.VolumeID(),
		TargetPath: target,
		Readonly:   true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: p.Group}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: volumeContext,
	}
	request.Secrets = maps.Clone(p.Secret)
	if k.Tokens != nil {
		request.Secrets = Secrets(k.Tokens(p))
		maps.Copy(request.Secrets, p.Secret)
	}
	return request, nil
}

// Secrets are those of a publish with this service account token, which expires in
// an hour.
func Secrets(token string) map[string]string {
	return map[string]string{"csi.storage.k8s.io/serviceAccount.tokens": fmt.Sprintf(
		`{"step-csi": {"token": %q, "expirationTimestamp": %q}}`, token, time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano))}
}

// MustRequest is Request for a test that can fail.
func (k *Kubelet) MustRequest(p Pod) *csi.NodePublishVolumeRequest {
	k.T.Helper()
	request, err := k.Request(p)
	Must(k.T, err)
	return request
}

// TryPublish publishes the pod's volume once.
func (k *Kubelet) TryPublish(p Pod) error {
	request, err := k.Request(p)
	if err != nil {
		return err
	}
	ctx, cancel := k.context()
	defer cancel()
	_, err = k.NodePublishVolume(ctx, request)
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.published == nil {
			k.published = map[string]Pod{}
		}
		k.published[p.VolumeID()] = p
	}
	return err
}

// Publish fails the test if the volume cannot be published.
func (k *Kubelet) Publish(p Pod) {
	k.T.Helper()
	Must(k.T, k.TryPublish(p))
}

// Republish publishes the volumes of all pods again, as the kubelet does every 60 to
// 90 s. Until then, a restarted plugin renews none of them.
func (k *Kubelet) Republish() {
	k.T.Helper()
	k.mu.Lock()
	pods := slices.Collect(maps.Values(k.published))
	k.mu.Unlock()
	for _, p := range pods {
		k.Publish(p)
	}
}

// TryUnpublish unpublishes the pod's volume once.
func (k *Kubelet) TryUnpublish(p Pod) error {
	ctx, cancel := k.context()
	defer cancel()
	_, err := k.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: p.VolumeID(), TargetPath: k.Target(p)})
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.published, p.VolumeID())
	}
	return err
}

// Unpublish fails the test if the volume cannot be unpublished.
func (k *Kubelet) Unpublish(p Pod) {
	k.T.Helper()
	Must(k.T, k.TryUnpublish(p))
}

// Health returns what is wrong with the pod's volume. It is an error if the plugin
// does not know the volume, or if it is not mounted.
func (k *Kubelet) Health(p Pod) ([]*csi.VolumeHealth_VolumeHealthEntry, error) {
	ctx, cancel := k.context()
	defer cancel()
	answer, err := k.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: p.VolumeID(), VolumePublishPath: k.Target(p)})
	return answer.GetVolumeHealth().GetHealthStatuses(), err
}

// Mounts are the paths at which volumes are mounted.
func (k *Kubelet) Mounts() []string {
	k.T.Helper()
	paths, err := tmpfs.List(k.T.Context(), Driver)
	Must(k.T, err)
	return slices.DeleteFunc(paths, func(path string) bool { return !strings.HasPrefix(path, k.KubeletDir+"/") })
}
