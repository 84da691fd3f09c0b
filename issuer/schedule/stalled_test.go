package schedule

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

func (n *node) expectStalled(want string) {
	n.t.Helper()
	synctest.Wait()
	switch err := n.Stalled(); {
	case want == "" && err != nil:
		n.t.Errorf("stalled: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		n.t.Errorf("stalled: %v, want %q", err, want)
	}
}

// Neither idleness nor an outage of the issuer nor slow answers are a stall.
func TestHealthySchedulerIsNotStalled(t *testing.T) {
	if err := New().Stalled(); err != nil {
		t.Errorf("before it runs: %v", err)
	}
	virtually(t, func(n *node) {
		n.takes = 2 * time.Minute
		for _, name := range []string{"a", "b", "c"} {
			n.keep(name, issuedAt(time.Now(), day, name))
		}
		for hour := range 72 {
			switch hour {
			case 24:
				n.answers(errAway)
			case 48:
				n.answers(issuer.Throttled)
			}
			for range 60 {
				time.Sleep(time.Minute)
				n.expectStalled("")
			}
		}
		n.end()
		time.Sleep(day)
		n.expectStalled("") // it has stopped
		n.start()
	})
}

func TestHangingRenewalIsAStall(t *testing.T) {
	virtually(t, func(n *node) {
		release := make(chan struct{})
		e := n.Add("pod", issuedAt(time.Now(), time.Hour, "a"), func(context.Context) (renewal.Validity, error) {
			<-release // without regard to the context
			return issuedAt(time.Now(), day, "a"), nil
		})
		e.RenewNow()
		time.Sleep(stallLimit)
		n.expectStalled("")
		time.Sleep(time.Minute)
		n.expectStalled("a renewal has been in progress for 16m0s")
		close(release)
		n.expectStalled("")
	})
}

// The loop of Run hangs.
func TestHangingLoopIsAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{Scheduler: New(), t: t}
		ctx, stop := context.WithCancel(t.Context())
		n.running, n.heartbeat = ctx, time.Now() // Run has begun, and does not go on
		time.Sleep(stallLimit)
		n.expectStalled("")
		time.Sleep(time.Minute)
		n.expectStalled("the scheduler has looked for no renewal for 16m0s")
		stop()
		n.expectStalled("")
	})
}
