package integration

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/test/attackers"
	"github.com/flexstack/step-csi/test/node"
)

// Clients without a token attack the port in all ways at once, from five addresses, one
// of which is that of an honest node. The node gets its certificates, also on new
// connections. The registration authority stays far below the memory limit of the
// chart, and neither its log nor the API server gets more than the limits let through.
func TestAttackAuthorityPort(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := newAuthorities(t, ca)
	plain, err := node.Build(t.TempDir(), false) // the race detector takes several times the memory
	node.Must(t, err)
	r.binary = plain
	r.startReplicas(1, "")
	begin := time.Now()
	signed := 0
	sign := func(client rapb.RegistrationAuthorityClient) {
		t.Helper()
		node.Eventually(t, 2*time.Minute, "a certificate for an honest node", func() bool {
			a := newAttack(t, r)
			pod := a.pod
			pod.UID = fmt.Sprint("uid-", r.attacks.Load())
			a.as(pod)
			err := a.call(client)
			if code := status.Code(err); err != nil && code != codes.Unavailable && code != codes.DeadlineExceeded {
				t.Fatal(err)
			}
			return err == nil
		})
		signed++
	}
	client := r.client(t)
	sign(client)

	ctx, stop := context.WithCancel(t.Context())
	var attacking sync.WaitGroup
	defer attacking.Wait()
	defer stop()
	const addresses = 5
	var all []*attackers.Attacker
	stranger := plugin
	stranger.UID = "guessed" // without rights at the API server, nobody knows it
	for n := range addresses {
		for _, attack := range attackers.All() {
			a := &attackers.Attacker{
				Address: net.JoinHostPort("127.0.0.1", r.port), From: netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + n)}),
				Plugin: stranger, Pause: 50 * time.Millisecond,
			}
			all = append(all, a)
			attacking.Go(func() { attack.Run(ctx, a) })
		}
	}
	for range 10 {
		sign(client)
		sign(r.clientFrom(t, "127.0.0.9"))
	}
	node.Eventually(t, 2*time.Minute, "all attackers have attacked", func() bool {
		for _, a := range all {
			if a.Done.Load() < 20 {
				return false
			}
		}
		return true
	})
	sign(client)
	stop()
	attacking.Wait()
	sign(client)

	if peak := peakMemory(t, r.replicas[0].process.Process.Pid); peak > 256 {
		t.Errorf("the registration authority took %d MiB", peak)
	}
	// A burst of 20, and then one line each second.
	log := r.replicas[0].logs
	lines, asked := log.Count(`"Call rejected"`)+log.Count(`"Connection failed"`), r.reviews.Asked()
	took := time.Since(begin).Seconds() // after both were counted: the log goes on
	if float64(lines) > 21+took {
		t.Errorf("%d lines about rejected calls in %.0f s", lines, took)
	}
	for line := range strings.Lines(log.String()) {
		if len(line) > 1500 || strings.Contains(line, "spam spam spam spam spam") {
			t.Errorf("the log contains %q", line)
		}
	}
	// Each honest call has a token of its own here, and a token of a pod.
	if most := float64(2*r.attacks.Load()) + addresses*(55+10*took); float64(asked) > most {
		t.Errorf("the API server was asked for %d reviews in %.0f s, want at most %.0f", asked, took, most)
	}
	if ca.Signs() > r.attacks.Load()+1 {
		t.Errorf("the CA signed %d times for %d honest calls", ca.Signs(), r.attacks.Load())
	}
	// Nothing of the attack is left. An idle registration authority has about 50
	// goroutines.
	var metrics string
	node.Eventually(t, 2*time.Minute, "the attackers' connections and goroutines are gone", func() bool {
		_, metrics = r.get(0, "/metrics")
		return valueOf(metrics, `step_csi_ra_connections{state="pending"}`) == 0 && valueOf(metrics, "go_goroutines") < 200
	})
	t.Logf("%.0f goroutines, %.0f bytes in the heap", valueOf(metrics, "go_goroutines"), valueOf(metrics, "go_memstats_heap_alloc_bytes"))
	for _, series := range []string{
		`step_csi_ra_rejected_calls_total{reason="token"}`, `step_csi_ra_rejected_calls_total{reason="review"}`,
		`step_csi_ra_closed_connections_total{reason="rejections"}`, `step_csi_ra_closed_connections_total{reason="crowded"}`,
	} {
		if value := valueOf(metrics, series); value == 0 {
			t.Errorf("%s is 0", series)
		}
	}
}

// valueOf returns the value of a series in the text of /metrics.
func valueOf(metrics, series string) float64 {
	_, after, _ := strings.Cut(metrics, "\n"+series+" ")
	text, _, _ := strings.Cut(after, "\n")
	value, _ := strconv.ParseFloat(text, 64)
	return value
}
