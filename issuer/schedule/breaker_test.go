package schedule

import (
	"fmt"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

func TestBreaker(t *testing.T) {
	now := time.Now()
	away := fmt.Errorf("%w: no route to host", issuer.Unavailable)
	v := issuedAt(now, day, "a")
	var b Breaker
	b.Observe(Renewal, now, now, fmt.Errorf("%w: another name", issuer.Denied))
	if b.IsOpen() {
		t.Fatal("a denial opened the breaker")
	}
	b.Observe(Publish, now, now.Add(time.Second), away)
	first := b.ProbeAt(v, now)
	if !b.IsOpen() || b.failures != 1 || !first.After(now) {
		t.Fatalf("the breaker after the first failure: %+v", b)
	}
	// These failures do not count: the first call began before the last failure, and
	// publishes follow the kubelet's pace.
	b.Observe(Renewal, now, now.Add(2*time.Second), away)
	b.Observe(Publish, now.Add(3*time.Second), now.Add(4*time.Second), away)
	if b.failures != 1 || !b.ProbeAt(v, now).Equal(first) {
		t.Errorf("the breaker after failures that do not count: %+v", b)
	}
	began := now.Add(5 * time.Second)
	for range 20 { // probes
		b.Observe(Renewal, began, began.Add(time.Second), away)
		if pause := b.ProbeAt(v, began).Sub(began); pause > 5*time.Minute+time.Second {
			t.Errorf("after %d failures, the pause is %s", b.failures, pause)
		}
		began = began.Add(time.Minute)
	}
	if b.failures != 21 {
		t.Errorf("%d failures", b.failures)
	}
	// These outcomes do not show that the CA works again. The registration authority,
	// for example, also denies requests while its CA is down.
	for _, o := range []issuer.Outcome{issuer.Denied, issuer.Canceled, issuer.NoPodToken, issuer.Throttled} {
		if b.Observe(Renewal, began, began, fmt.Errorf("%w: a test", o)) || !b.IsOpen() {
			t.Errorf("%v closed the breaker", o)
		}
	}
	if !b.Observe(Publish, began, began, nil) || b.IsOpen() || b.Observe(Publish, began, began, nil) {
		t.Error("a success must close the breaker, and report that once")
	}
}

// If the plugin itself is rejected, no pod of the node gets a certificate.
func TestRejectedCallerOpensTheBreaker(t *testing.T) {
	var b Breaker
	now := time.Now()
	b.Observe(Renewal, now, now, fmt.Errorf("%w: its token has expired", issuer.CallerRejected))
	if !b.IsOpen() {
		t.Error("the breaker is closed")
	}
}
