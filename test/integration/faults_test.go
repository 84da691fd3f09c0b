package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// expect checks the code and a part of the message of an error.
func expect(t *testing.T, err error, want codes.Code, message string) {
	t.Helper()
	if status.Code(err) != want || err != nil && !strings.Contains(err.Error(), message) {
		t.Errorf("got %v, want %s with %q", err, want, message)
	}
}

func TestTwoHundredVolumesAtOnce(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	var wg sync.WaitGroup
	pods := make([]node.Pod, 200)
	for i := range pods {
		pods[i] = node.Pod{Name: fmt.Sprintf("web-%d", i), Attributes: map[string]string{"service-names": "web"}}
		wg.Go(func() {
			if err := n.TryPublish(pods[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if signs, mounts := ca.Signs(), len(n.Mounts()); signs != 200 || mounts != 200 {
		t.Errorf("%d signing requests and %d mounts, want 200 each", signs, mounts)
	}
	serials := map[string]bool{}
	for _, p := range pods {
		serials[read(t, n.Target(p)).leaf().SerialNumber.String()] = true
		wg.Go(func() { n.Unpublish(p) })
	}
	wg.Wait()
	if len(serials) != 200 {
		t.Errorf("%d different certificates", len(serials))
	}
	if m := n.Mounts(); len(m) > 0 {
		t.Errorf("%d mounts remain", len(m))
	}
}

func TestOneVolumeFromTwentyCallersAtOnce(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	n.MustRequest(p) // creates the directory
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := n.TryPublish(p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if signs, mounts := ca.Signs(), len(n.Mounts()); signs != 1 || mounts != 1 {
		t.Errorf("%d signing requests and %d mounts, want 1 each", signs, mounts)
	}
	for range 20 {
		wg.Go(func() { n.Unpublish(p) })
	}
	wg.Wait()
}

func TestCADownAtPublish(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	ca.Stop()
	expect(t, n.TryPublish(p), codes.Unavailable, "connection refused")
	if _, err := os.Lstat(n.Target(p)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target exists: %v", err)
	}
	if m := n.Mounts(); len(m) > 0 {
		t.Errorf("mounted: %q", m)
	}
	node.Must(t, ca.Resume())
	n.Publish(p)
	read(t, n.Target(p))
	n.Unpublish(p)
}

// A plugin that starts while the CA is down is not ready. It becomes ready when the
// CA is up.
func TestCADownAtStart(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	ca.Stop()
	n := node.New(t, binary, ca)
	n.Launch()
	answer, err := n.Probe(t.Context(), &csi.ProbeRequest{})
	if err != nil || answer.GetReady().GetValue() {
		t.Errorf("ready without a CA: %v, %v", answer, err)
	}
	p := node.Pod{Name: "web-0"}
	expect(t, n.TryPublish(p), codes.Unavailable, "connection refused")
	node.Must(t, ca.Resume())
	n.Publish(p)
	node.Eventually(t, time.Minute, "the plugin is ready", func() bool {
		answer, err := n.Probe(t.Context(), &csi.ProbeRequest{})
		return err == nil && answer.GetReady().GetValue()
	})
	n.Unpublish(p)
}

func TestCADownAtRenewal(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
	n.Publish(p)
	health := func() *csi.VolumeHealth {
		answer, err := n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: p.VolumeID(), VolumePublishPath: n.Target(p)})
		node.Must(t, err)
		return answer.GetVolumeHealth()
	}
	if h := health(); len(h.GetHealthStatuses()) > 0 {
		t.Errorf("the health before the outage: %v", h)
	}
	ca.Stop()
	first := read(t, n.Target(p)).leaf()
	waitTroubleBefore(n, p, first.NotAfter, "connection refused")
	if !read(t, n.Target(p)).leaf().Equal(first) {
		t.Error("the files changed during the outage")
	}
	node.Eventually(t, time.Minute, "expiry in the volume's health", func() bool {
		h := health().GetHealthStatuses()
		return len(h) == 1 && h[0].GetReason() == "CertificateExpired"
	})
	node.Must(t, ca.Resume())
	node.Eventually(t, time.Minute, "renewal once the CA is back", func() bool { return len(health().GetHealthStatuses()) == 0 })
	if read(t, n.Target(p)).leaf().Equal(first) {
		t.Error("the files are unchanged after the outage")
	}
	n.Unpublish(p)
}

func TestBadAnswersOfTheCA(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	for name, answer := range map[string]http.HandlerFunc{
		"rubbish": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"closes":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"503":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
	} {
		t.Run(name, func(t *testing.T) {
			ca.Intercept(func(http.Handler) http.Handler { return answer })
			defer ca.Intercept(nil)
			expect(t, n.TryPublish(p), codes.Unavailable, ca.URL())
			if _, err := os.Lstat(n.Target(p)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the target exists: %v", err)
			}
		})
	}
	n.Publish(p)
	n.Unpublish(p)
}

// slow makes the CA withhold its answers until the channel is closed.
func slow(ca *embeddedca.CA) chan struct{} {
	release := make(chan struct{})
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-release
			next.ServeHTTP(w, r)
		})
	})
	return release
}

// A CA that hangs delays only the calls that need it: other volumes can be
// unpublished, and the waiting call ends at its deadline.
func TestHangingCA(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	mounted, stuck := node.Pod{Name: "mounted-0"}, node.Pod{Name: "stuck-0"}
	n.Publish(mounted)
	ca.Intercept(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	})
	try := func(ctx context.Context) (failed chan error) {
		failed = make(chan error, 1)
		signs, request := ca.Signs(), n.MustRequest(stuck)
		go func() {
			_, err := n.NodePublishVolume(ctx, request)
			failed <- err
		}()
		node.Eventually(t, time.Minute, "the CA receives the request", func() bool { return ca.Signs() > signs })
		return failed
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := try(ctx)
	n.Publish(mounted)
	n.Unpublish(mounted)
	select {
	case err := <-failed:
		t.Fatalf("another volume waited for the stuck one, which ended: %v", err)
	default:
	}
	cancel()
	expect(t, <-failed, codes.Canceled, "")
	n.Unpublish(stuck) // waits until the canceled call has ended
	limited, end := context.WithTimeout(t.Context(), 8*time.Second)
	defer end()
	expect(t, <-try(limited), codes.DeadlineExceeded, "")
	ca.Intercept(nil)
	n.Unpublish(stuck) // waits until the canceled call has ended
	n.Publish(stuck)
	n.Unpublish(stuck)
}

func TestInvalidRequests(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	mountAccess := &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}
	for name, test := range map[string]struct {
		change func(*csi.NodePublishVolumeRequest)
		code   codes.Code
		want   string
	}{
		"no id":          {func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, codes.InvalidArgument, "volume_id"},
		"no path":        {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, codes.InvalidArgument, "target_path"},
		"relative path":  {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "pods/x" }, codes.InvalidArgument, "kubelet"},
		"outside":        {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "/etc/mount" }, codes.InvalidArgument, "--kubelet-dir"},
		"dots":           {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = n.KubeletDir + "/../x" }, codes.InvalidArgument, "kubelet"},
		"the directory":  {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = n.KubeletDir }, codes.InvalidArgument, "kubelet"},
		"no parent":      {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = n.KubeletDir + "/a/b/c" }, codes.NotFound, "no such file"},
		"no capability":  {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, codes.InvalidArgument, "volume_capability"},
		"no access type": {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil }, codes.InvalidArgument, "access type"},
		"block":          {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{} }, codes.InvalidArgument, "block"},
		"not ephemeral":  {func(r *csi.NodePublishVolumeRequest) { delete(r.VolumeContext, "csi.storage.k8s.io/ephemeral") }, codes.InvalidArgument, "inline"},
		"no pod":         {func(r *csi.NodePublishVolumeRequest) { delete(r.VolumeContext, "csi.storage.k8s.io/pod.uid") }, codes.InvalidArgument, "podInfoOnMount"},
		"unknown key":    {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["dns-name"] = "x" }, codes.InvalidArgument, "dns-names is"},
		"unknown issuer": {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["issuer"] = "x" }, codes.InvalidArgument, "is not an issuer in the plugin"},
		"bad mount group": {func(r *csi.NodePublishVolumeRequest) {
			mountAccess.Mount.VolumeMountGroup = "x"
			r.VolumeCapability.AccessType = mountAccess
		}, codes.InvalidArgument, "volume_mount_group"},
		"too long":     {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["duration"] = "48h" }, codes.InvalidArgument, "24h"},
		"foreign name": {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["dns-names"] = "web.other" }, codes.PermissionDenied, "web.other"},
		"foreign identity": {func(r *csi.NodePublishVolumeRequest) {
			r.VolumeContext["uri-sans"] = "spiffe://cluster.local/ns/shop/sa/db"
		}, codes.PermissionDenied, "sa/db"},
	} {
		t.Run(name, func(t *testing.T) {
			request := n.MustRequest(node.Pod{Name: "web-0"})
			test.change(request)
			_, err := n.NodePublishVolume(t.Context(), request)
			expect(t, err, test.code, test.want)
		})
	}
	if ca.Signs() != 0 || len(n.Mounts()) > 0 {
		t.Errorf("%d signing requests, mounts %q", ca.Signs(), n.Mounts())
	}
	for _, request := range []*csi.NodeUnpublishVolumeRequest{
		{}, {VolumeId: "x"}, {TargetPath: n.KubeletDir + "/x"}, {VolumeId: "x", TargetPath: "/etc"},
	} {
		_, err := n.NodeUnpublishVolume(t.Context(), request)
		expect(t, err, codes.InvalidArgument, "")
	}
	// The log has one line per failed call. It is complete when the process has ended.
	n.Stop()
	if lines := n.Logs.Count(logs.CallFailed); lines != 18+4 {
		t.Errorf("%d failed calls in the log", lines)
	}
}

// The plugin follows no symbolic link in the target path.
func TestHostileTargetPath(t *testing.T) {
	n := newNode(t, startCA(t))
	elsewhere := t.TempDir()
	p := node.Pod{Name: "web-0"}
	request := n.MustRequest(p)
	node.Must(t, os.Remove(filepath.Dir(request.GetTargetPath())))
	node.Must(t, os.Symlink(elsewhere, filepath.Dir(request.GetTargetPath())))
	_, err := n.NodePublishVolume(t.Context(), request)
	if status.Code(err) == codes.OK || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("the publish followed the link: %v", err)
	}
	node.Must(t, os.Mkdir(filepath.Join(elsewhere, "mount"), 0o755))
	_, err = n.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: p.VolumeID(), TargetPath: n.Target(p)})
	if status.Code(err) == codes.OK {
		t.Error("the unpublish followed the link")
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "mount")); err != nil {
		t.Errorf("the directory behind the link: %v", err)
	}
}

// A republish never fails and never disturbs the mount. It applies changed
// attributes.
func TestRepublish(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web"}}
	n.Publish(p)
	first := read(t, n.Target(p)).leaf()
	p.Attributes = map[string]string{"service-name": "web"}
	n.Publish(p) // a republish with invalid attributes succeeds while the pod runs
	// These requests result from a CSIDriver object or a pod that changed while the
	// pod runs, for example a CSIDriver object without podInfoOnMount.
	for _, change := range []func(*csi.NodePublishVolumeRequest){
		func(r *csi.NodePublishVolumeRequest) { r.VolumeContext = nil },
		func(r *csi.NodePublishVolumeRequest) { r.Readonly = false },
		func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil },
	} {
		request := n.MustRequest(p)
		change(request)
		_, err := n.NodePublishVolume(t.Context(), request)
		node.Must(t, err)
	}
	ca.Stop()
	n.Publish(p)
	if !read(t, n.Target(p)).leaf().Equal(first) || ca.Signs() != 1 {
		t.Error("the certificate changed")
	}
	node.Must(t, ca.Resume())
	p.Attributes = map[string]string{"service-names": "web,shop"}
	n.Publish(p)
	node.Eventually(t, time.Minute, "the new names", func() bool { return len(read(t, n.Target(p)).leaf().DNSNames) == 6 })
	n.Publish(p)
	if signs := ca.Signs(); signs != 2 {
		t.Errorf("%d signing requests, want 2", signs)
	}
	n.Unpublish(p)
}

// An unreadable record costs one renewal, and nothing else.
func TestDamagedRecord(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	first := read(t, n.Target(p)).leaf()
	n.Kill()
	target, err := os.Open(n.Target(p))
	node.Must(t, err)
	tree, err := tmpfs.Clone(target)
	node.Must(t, err)
	node.Must(t, tree.SetRecord([]byte("{")))
	node.Must(t, errors.Join(tree.Close(), target.Close()))
	n.Start()
	read(t, n.Target(p))
	n.Publish(p)
	// The log has the renewal once the record is written, after the files.
	node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) && n.Logs.Has(logs.Renewed) })
	n.Kill()
	n.Start() // the record is readable again
	n.Publish(p)
	if signs := ca.Signs(); signs != 2 {
		t.Errorf("%d signing requests, want 2", signs)
	}
	n.Unpublish(p)
}

func TestPartlyRemovedVolumes(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0"}
	n.MustRequest(p)

	n.Unpublish(p)                                // never published
	node.Must(t, os.Mkdir(n.Target(p), 0o755))    // an empty target directory
	n.Unpublish(p)                                //
	n.Publish(p)                                  //
	node.Must(t, syscall.Unmount(n.Target(p), 0)) // unmounted by another process
	n.Publish(p)                                  // the republish mounts it again
	read(t, n.Target(p))
	node.Must(t, syscall.Unmount(n.Target(p), 0))
	node.Must(t, os.Remove(n.Target(p)))
	n.Unpublish(p)
	n.Publish(p)
	// The volume is mounted twice, one mount on top of the other.
	node.Must(t, syscall.Mount(n.Target(p), n.Target(p), "", syscall.MS_BIND, ""))
	n.Unpublish(p)
	if m := n.Mounts(); len(m) > 0 {
		t.Errorf("mounted: %q", m)
	}

	// An unpublish touches no other volume's mount, and no foreign mount.
	other := node.Pod{Name: "web-1"}
	n.Publish(other)
	_, err := n.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: p.VolumeID(), TargetPath: n.Target(other)})
	expect(t, err, codes.AlreadyExists, "another volume is mounted")
	read(t, n.Target(other))
	_, err = n.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: other.VolumeID(), TargetPath: n.Target(p)})
	node.Must(t, err) // nothing is mounted there
	_, err = n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: other.VolumeID()})
	node.Must(t, err) // the plugin still manages the other volume
	n.Unpublish(other)
	node.Must(t, os.Mkdir(n.Target(p), 0o755))
	node.Must(t, syscall.Mount("other", n.Target(p), "tmpfs", 0, ""))
	defer func() { node.Must(t, syscall.Unmount(n.Target(p), 0)) }()
	_, err = n.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: p.VolumeID(), TargetPath: n.Target(p)})
	expect(t, err, codes.Internal, "something else")
	expect(t, n.TryPublish(p), codes.Unavailable, "something else")
}

func TestStatsAndHealthOfUnknownVolumes(t *testing.T) {
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0"}
	stats := func(id, path string) (*csi.NodeGetVolumeStatsResponse, error) {
		return n.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
	}
	n.Publish(p)
	answer, err := stats(p.VolumeID(), n.Target(p))
	node.Must(t, err)
	usage := answer.GetUsage()
	if len(usage) != 2 || usage[0].GetTotal() != 1<<20 || usage[0].GetUsed() < 4096 || usage[0].GetUsed()+usage[0].GetAvailable() != 1<<20 ||
		usage[1].GetTotal() != 128 || usage[1].GetUsed() < 8 {
		t.Errorf("usage %v", usage)
	}
	_, err = stats(p.VolumeID(), n.KubeletDir+"/x")
	expect(t, err, codes.NotFound, "")
	_, err = stats("x", n.Target(p))
	expect(t, err, codes.NotFound, "")
	_, err = n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: "x"})
	expect(t, err, codes.NotFound, "")
	_, err = n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{})
	expect(t, err, codes.InvalidArgument, "volume_id")
	n.Unpublish(p)
	_, err = stats(p.VolumeID(), n.Target(p))
	expect(t, err, codes.NotFound, "")
}
