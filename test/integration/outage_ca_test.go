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

// A CA that takes seconds is none that is away: certificates are renewed in time,
// and each is asked for once.
func TestSlowCAIsWaitedFor(t *testing.T) {
	t.Parallel()
	ca := startDistantCA(t)
	n := newNode(t, ca)
	node.Must(t, ca.proxy.Set(proxy.Delay(700*time.Millisecond)))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "12s"}}
	n.Publish(p)
	defer n.Unpublish(p)
	first := read(t, n.Target(p)).leaf()
	node.Eventually(t, 30*time.Second, "a renewal", func() bool {
		if trouble := trouble(n, p); trouble != "" {
			t.Fatal(trouble)
		}
		return !read(t, n.Target(p)).leaf().Equal(first)
	})
	if signs := ca.Signs(); signs != 2 {
		t.Errorf("%d signs", signs)
	}
}

// A CA that swallows what it is sent, over the connection that there is and over new
// ones: who waits for it is told in time, and nobody waits for a dead connection
// once it is back.
func TestSilentCA(t *testing.T) {
	t.Parallel()
	ca := startDistantCA(t)
	n := newNode(t, ca)
	mounted, late := node.Pod{Name: "mounted-0", Attributes: map[string]string{"duration": "9s"}}, node.Pod{Name: "late-0"}
	n.Publish(mounted)
	before := snapshot(n, mounted)
	node.Must(t, ca.proxy.Set(proxy.Blackhole))
	connections := ca.proxy.Connections()
	begin := time.Now()
	expect(t, n.TryPublish(late), codes.Unavailable, "no answer in time")
	if took := time.Since(begin); took > 60*time.Second {
		t.Errorf("the kubelet waited for %s", took)
	}
	waitTrouble(n, mounted, "CertificateExpired", "no answer in time")
	if made := ca.proxy.Connections() - connections; made > 10 {
		t.Errorf("%d connections in %s", made, time.Since(begin))
	}
	if snapshot(n, mounted) != before {
		t.Error("the files have changed")
	}
	recoverAfter(n, mounted, func() { node.Must(t, ca.proxy.Set(proxy.None)) })
	n.Publish(late)
	n.Unpublish(late)
	n.Unpublish(mounted)
}

// Renewals that hang are not in the way of a pod that starts once the CA answers
// again.
func TestPodsComeBeforeTheBacklog(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	const count = 60
	var pods []node.Pod
	var publishing sync.WaitGroup
	for i := range count {
		p := node.Pod{Name: fmt.Sprintf("mounted-%d", i), Attributes: map[string]string{"duration": "15s"}}
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
	node.Eventually(t, 40*time.Second, "half of the calls hang", func() bool { return ca.Signs() >= count+32 })
	ca.Intercept(nil) // those that hang still do
	late := node.Pod{Name: "late-0"}
	n.Publish(late)
	if renewed := n.Logs.Count(logs.Renewed); renewed != 0 || ca.Signs() != count+32+1 {
		t.Errorf("%d were renewed before, and %d more calls made", renewed, ca.Signs()-count-32-1)
	}
	close(release)
	for _, p := range append(pods, late) {
		waitRecovery(n, p)
		n.Unpublish(p)
	}
}

// The way of a plugin from one outage into the next: it is started anew while there
// is another CA at the URL, which it must not believe.
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
	waitTrouble(n, p, "RenewalFailing", "(is the fingerprint or caBundleFile that of this CA?)")
	expect(t, n.TryPublish(node.Pod{Name: "late-0"}), codes.Unavailable, "(is the fingerprint or caBundleFile that of this CA?)")
	if snapshot(n, p) != before || another.Signs() != 0 {
		t.Errorf("the files have changed, or another CA was asked to sign: %d times", another.Signs())
	}
	ca.proxy.To(ca.Address())
	waitRecovery(n, p)
	n.Unpublish(p)
}
