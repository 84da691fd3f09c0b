package integration

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/proxy"
)

// A CA that takes seconds is none that is away: certificates are renewed in time,
// and each is asked for once.
func TestSlowCAIsWaitedFor(t *testing.T) {
	t.Parallel()
	ca := startDistantCA(t)
	n := newNode(t, ca)
	must(t, ca.proxy.Set(proxy.Delay(700*time.Millisecond)))
	p := pod{name: "web-0", attributes: map[string]string{"duration": "12s"}}
	n.publish(p)
	defer n.unpublish(p)
	first := read(t, n.target(p)).leaf()
	eventually(t, 30*time.Second, "a renewal", func() bool {
		if trouble := n.trouble(p); trouble != "" {
			t.Fatal(trouble)
		}
		return !read(t, n.target(p)).leaf().Equal(first)
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
	mounted, late := pod{name: "mounted-0", attributes: map[string]string{"duration": "9s"}}, pod{name: "late-0"}
	n.publish(mounted)
	before := n.snapshot(mounted)
	must(t, ca.proxy.Set(proxy.Blackhole))
	connections := ca.proxy.Connections()
	begin := time.Now()
	expect(t, n.tryPublish(late), codes.Unavailable, "no answer in time")
	if took := time.Since(begin); took > 60*time.Second {
		t.Errorf("the kubelet waited for %s", took)
	}
	n.waitTrouble(mounted, "CertificateExpired", "no answer in time")
	if made := ca.proxy.Connections() - connections; made > 10 {
		t.Errorf("%d connections in %s", made, time.Since(begin))
	}
	if n.snapshot(mounted) != before {
		t.Error("the files have changed")
	}
	n.recoverAfter(mounted, func() { must(t, ca.proxy.Set(proxy.None)) })
	n.publish(late)
	n.unpublish(late)
	n.unpublish(mounted)
}

// Renewals that hang are not in the way of a pod that starts once the CA answers
// again.
func TestPodsComeBeforeTheBacklog(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	const count = 60
	var pods []pod
	var publishing sync.WaitGroup
	for i := range count {
		p := pod{name: fmt.Sprintf("mounted-%d", i), attributes: map[string]string{"duration": "15s"}}
		pods = append(pods, p)
		n.publishRequest(p)
		publishing.Go(func() {
			if err := n.tryPublish(p); err != nil {
				t.Error(err)
			}
		})
	}
	publishing.Wait()
	release := slow(ca)
	eventually(t, 40*time.Second, "half of the calls hang", func() bool { return ca.Signs() >= count+32 })
	ca.Intercept(nil) // those that hang still do
	late := pod{name: "late-0"}
	n.publish(late)
	if renewed := strings.Count(n.logs.String(), `"Renewed"`); renewed != 0 || ca.Signs() != count+32+1 {
		t.Errorf("%d were renewed before, and %d more calls made", renewed, ca.Signs()-count-32-1)
	}
	close(release)
	for _, p := range append(pods, late) {
		n.waitRecovery(p)
		n.unpublish(p)
	}
}

// The way of a plugin from one outage into the next: it is started anew while there
// is another CA at the URL, which it must not believe.
func TestStartWithAnotherCAInItsPlace(t *testing.T) {
	t.Parallel()
	ca, another := startDistantCA(t), startCA(t)
	n := newNode(t, ca)
	p := pod{name: "web-0", attributes: map[string]string{"duration": "9s"}}
	n.publish(p)
	before := n.snapshot(p)
	n.kill()
	ca.proxy.To(another.Address())
	n.launch()
	n.waitTrouble(p, "RenewalFailing", "(is the fingerprint or caBundleFile that of this CA?)")
	expect(t, n.tryPublish(pod{name: "late-0"}), codes.Unavailable, "(is the fingerprint or caBundleFile that of this CA?)")
	if n.snapshot(p) != before || another.Signs() != 0 {
		t.Errorf("the files have changed, or another CA was asked to sign: %d times", another.Signs())
	}
	ca.proxy.To(ca.Address())
	n.waitRecovery(p)
	n.unpublish(p)
}
