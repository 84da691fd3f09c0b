package integration

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/proxy"
)

// A slow CA is not an outage: the plugin renews in time and requests each
// certificate once.
func TestSlowCA(t *testing.T) {
	t.Parallel()
	ca := startDistantCA(t)
	n := newNode(t, ca)
	node.Must(t, ca.proxy.Set(proxy.Delay(700*time.Millisecond)))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "40s", "renew-before": "30s"}}
	n.Publish(p)
	defer n.Unpublish(p)
	first := read(t, n.Target(p)).leaf()
	node.Eventually(t, time.Minute, "a renewal", func() bool {
		if trouble := trouble(n, p); trouble != "" {
			t.Fatalf("the volume is unhealthy: %s", trouble)
		}
		return !read(t, n.Target(p)).leaf().Equal(first)
	})
	if signs := ca.Signs(); signs != 2 {
		t.Errorf("%d signing requests, want 2", signs)
	}
}

// The CA stops answering, on open and on new connections. A publish fails in time
// with a clear error, and once the CA answers again, no call waits for a dead
// connection.
func TestSilentCA(t *testing.T) {
	t.Parallel()
	ca := startDistantCA(t)
	n := newNode(t, ca)
	mounted, late := node.Pod{Name: "mounted-0", Attributes: map[string]string{"duration": "9s"}}, node.Pod{Name: "late-0"}
	n.Publish(mounted)
	node.Must(t, ca.proxy.Set(proxy.Blackhole))
	before := snapshot(n, mounted)
	connections := ca.proxy.Connections()
	begin := time.Now()
	expect(t, n.TryPublish(late), codes.Unavailable, "no answer in time")
	if took := time.Since(begin); took > 60*time.Second {
		t.Errorf("the kubelet waited for %s", took)
	}
	waitTrouble(n, mounted, "CertificateExpired", "no answer in time")
	if made := ca.proxy.Connections() - connections; made > 10 {
		t.Errorf("%d connections within %s", made, time.Since(begin))
	}
	if snapshot(n, mounted) != before {
		t.Error("the files changed during the outage")
	}
	recoverAfter(n, mounted, func() { node.Must(t, ca.proxy.Set(proxy.None)) })
	n.Publish(late)
	n.Unpublish(late)
	n.Unpublish(mounted)
}

// After an outage, renewals that still hang do not delay the publish of a new pod.
func TestPodsComeBeforeTheBacklog(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	const count = 60
	var pods []node.Pod
	var publishing sync.WaitGroup
	for i := range count {
		// Due after all are published, also on a slow machine.
		p := node.Pod{Name: fmt.Sprintf("mounted-%d", i), Attributes: map[string]string{"duration": "1m"}}
		pods = append(pods, p)
		n.MustRequest(p)
		publishing.Go(func() {
			if err := n.TryPublish(p); err != nil {
				t.Error(err)
			}
		})
	}
	publishing.Wait()
	release := slow(ca)
	node.Eventually(t, 3*time.Minute, "the renewals use all their slots", func() bool { return ca.Signs() >= count+32 })
	ca.Intercept(nil) // the calls in flight still hang
	late := node.Pod{Name: "late-0"}
	n.Publish(late)
	if renewed := n.Logs.Count(logs.Renewed); renewed != 0 || ca.Signs() != count+32+1 {
		t.Errorf("before the publish: %d renewals succeeded, %d more signing requests", renewed, ca.Signs()-count-32-1)
	}
	close(release)
	for _, p := range append(pods, late) {
		waitRecovery(n, p)
		n.Unpublish(p)
	}
}

// The plugin restarts while another CA answers at the URL. The plugin must not trust
// that CA.
func TestStartWithAnotherCAInItsPlace(t *testing.T) {
	t.Parallel()
	ca, another := startDistantCA(t), startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
	n.Publish(p)
	before := snapshot(n, p)
	n.Kill()
	ca.proxy.To(another.Address())
	n.Launch()
	n.WaitServing()
	n.Republish()
	waitTroubleBefore(n, p, read(t, n.Target(p)).leaf().NotAfter, "that fingerprint or caBundleFile (in the chart: caBundle) is that of this CA")
	expect(t, n.TryPublish(node.Pod{Name: "late-0"}), codes.Unavailable, "that fingerprint or caBundleFile (in the chart: caBundle) is that of this CA")
	if snapshot(n, p) != before || another.Signs() != 0 {
		t.Errorf("the files changed, or the plugin sent signing requests to another CA: %d", another.Signs())
	}
	ca.proxy.To(ca.Address())
	waitRecovery(n, p)
	n.Unpublish(p)
}
