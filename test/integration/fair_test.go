package integration

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// volumesOf returns volumes of one pod.
func volumesOf(pod node.Pod, count int) (all []node.Pod) {
	for i := range count {
		pod.Volume = fmt.Sprint("tls-", i)
		all = append(all, pod)
	}
	return all
}

// A pod has at most limits.volumesPerPod volumes. The limit does not apply to mounted
// volumes: after a restart with a lower limit, they are adopted, published again and
// renewed.
func TestVolumesPerPod(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	address := "127.0.0.1:" + freePort(t)
	n.Flags = []string{"--http-address", address}
	n.Start()
	greedy := volumesOf(node.Pod{Name: "greedy-0", Attributes: map[string]string{"duration": "20s"}}, 34)
	other := node.Pod{Name: "web-0"}
	var all sync.WaitGroup
	var mu sync.Mutex
	var mounted, refused []node.Pod
	for _, p := range greedy {
		all.Go(func() {
			err := n.TryPublish(p)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				mounted = append(mounted, p)
				return
			}
			refused = append(refused, p)
			expect(t, err, codes.ResourceExhausted, "pod shop/greedy-0 has 32 volumes of this driver; 32 are allowed")
		})
	}
	all.Wait()
	if len(mounted) != 32 {
		t.Fatalf("%d volumes are mounted", len(mounted))
	}
	n.ExpectGone(refused[0])
	n.Publish(other)
	if _, body := get(t, "http://"+address+"/metrics"); !strings.Contains(body, `step_csi_publishes_refused_total{limit="pod"} 2`+"\n") {
		t.Error("the metric does not count the refused volumes")
	}
	n.Stop()
	n.ChangeConfig("issuers:", "limits: {volumesPerPod: 4}\nissuers:")
	n.Start()
	before := map[string]string{}
	for _, p := range mounted {
		n.Publish(p)
		before[p.Volume] = read(t, n.Target(p)).leaf().SerialNumber.String()
	}
	expect(t, n.TryPublish(refused[0]), codes.ResourceExhausted, "has 32 volumes of this driver; 4 are allowed")
	for _, p := range mounted {
		node.Eventually(t, time.Minute, "a renewal of "+p.Volume, func() bool {
			return read(t, n.Target(p)).leaf().SerialNumber.String() != before[p.Volume]
		})
	}
	for _, p := range mounted[3:] {
		n.Unpublish(p)
	}
	n.Publish(refused[0])
	expect(t, n.TryPublish(refused[1]), codes.ResourceExhausted, "has 4 volumes of this driver; 4 are allowed")
}

// A node has at most limits.volumesPerNode volumes.
func TestVolumesPerNode(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	n.ChangeConfig("issuers:", "limits: {volumesPerNode: 2}\nissuers:")
	n.Start()
	first, second, third := node.Pod{Name: "web-1"}, node.Pod{Name: "web-2"}, node.Pod{Name: "web-3"}
	n.Publish(first)
	n.Publish(second)
	expect(t, n.TryPublish(third), codes.ResourceExhausted, "raise limits.volumesPerNode in the chart's values")
	n.Publish(first) // a republish
	n.Unpublish(first)
	n.Publish(third)
}

// Two pods of a namespace ask for 32 RSA-4096 keys each, which takes minutes. The first
// certificates of pods of another namespace, with RSA keys and others, come before almost
// all of them.
func TestGreedyPublishesDelayNoOtherPod(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	greedy := volumesOf(node.Pod{Name: "greedy-0", Namespace: "greedy", Attributes: map[string]string{"key-type": "rsa-4096"}}, 32)
	greedy = append(greedy, volumesOf(node.Pod{Name: "greedy-1", Namespace: "greedy", Attributes: greedy[0].Attributes}, 32)...)
	ctx, cancel := context.WithCancel(t.Context())
	n.Until = ctx
	var kubelet sync.WaitGroup
	for _, p := range greedy {
		kubelet.Go(func() { _ = n.TryPublish(p) })
	}
	node.Eventually(t, 5*time.Minute, "a volume of the greedy pods", func() bool { return len(n.Mounts()) > 0 })
	var slowest time.Duration
	for i := range 20 {
		begin := time.Now()
		n.Publish(node.Pod{Name: fmt.Sprint("web-", i), Attributes: map[string]string{"service-names": "web"}})
		slowest = max(slowest, time.Since(begin))
	}
	t.Logf("the slowest of 20 first certificates took %s", slowest)
	n.Publish(node.Pod{Name: "rsa-0", Attributes: map[string]string{"key-type": "rsa-2048"}})
	if mounted := len(n.Mounts()) - 21; mounted > len(greedy)/2 {
		t.Errorf("%d of %d greedy volumes came first", mounted, len(greedy))
	}
	cancel()
	kubelet.Wait()
	n.Kill() // the keys in progress do not matter
}

// Beside 40 volumes that are renewed as often as the plugin allows, those of other pods
// are renewed when they are due, long before they expire, although the CA is slow.
func TestGreedyRenewalsDelayNoOtherPod(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := node.New(t, binary, ca)
	n.ChangeConfig("issuers:", "renewal: {minInterval: 3s}\nissuers:")
	n.Start()
	var greedy, honest []node.Pod
	for i := range 2 {
		greedy = append(greedy, volumesOf(node.Pod{Name: fmt.Sprint("greedy-", i), Attributes: map[string]string{"duration": "30s", "renew-before": "27s"}}, 20)...)
	}
	for i := range 3 {
		honest = append(honest, node.Pod{Name: fmt.Sprint("web-", i), Attributes: map[string]string{"duration": "4m", "renew-before": "216s"}})
	}
	for _, p := range append(greedy, honest...) {
		n.Publish(p)
	}
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(200 * time.Millisecond)
			next.ServeHTTP(w, r)
		})
	})
	// After 24 seconds, the honest volumes are due, and have 216 seconds left.
	for range 2 {
		leaves := map[string]*x509.Certificate{}
		for _, p := range honest {
			leaves[p.Name] = read(t, n.Target(p)).leaf()
		}
		for _, p := range honest {
			before := leaves[p.Name]
			node.Eventually(t, 2*time.Minute, "a renewal of "+p.Name, func() bool {
				return read(t, n.Target(p)).leaf().SerialNumber.Cmp(before.SerialNumber) != 0
			})
			if left := time.Until(before.NotAfter); left < time.Minute {
				t.Errorf("%s had only %s left when it was renewed", p.Name, left)
			}
		}
	}
	if renewed := n.Logs.Count(logs.Renewed, "greedy"); renewed < len(greedy) {
		t.Errorf("only %d renewals of greedy volumes: they were no burden", renewed)
	}
}

// A republish that writes the same attributes in another way renews nothing.
func TestSameAttributesInAnotherForm(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"dns-names": "b.shop, a.shop,b.shop", "duration": "60m"}}
	n.Publish(p)
	before := read(t, n.Target(p)).leaf().SerialNumber
	p.Attributes = map[string]string{"dns-names": " b.shop ,a.shop", "duration": "1h"}
	n.Publish(p)
	changed := p.With("dns-names", "a.shop, b.shop")
	if attributes.Normalize(changed.Attributes)["dns-names"] != "a.shop,b.shop" {
		t.Fatal("the next case changes nothing")
	}
	if read(t, n.Target(p)).leaf().SerialNumber.Cmp(before) != 0 || n.Logs.Has(logs.Renewed) {
		t.Error("the same attributes in another form caused a renewal")
	}
	n.Publish(changed)
	node.Eventually(t, time.Minute, "a renewal after a change", func() bool {
		return read(t, n.Target(p)).leaf().SerialNumber.Cmp(before) != 0
	})
}
