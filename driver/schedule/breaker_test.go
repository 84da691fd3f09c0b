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
		t.Fatal("a denial opened it")
	}
	b.Observe(Publish, now, now.Add(time.Second), away)
	first := b.ProbeAt(v, now)
	if !b.IsOpen() || b.failures != 1 || !first.After(now) {
		t.Fatalf("%+v", b)
	}
	// Another call of the same moment, and pods, which come at the kubelet's pace.
	b.Observe(Renewal, now, now.Add(2*time.Second), away)
	b.Observe(Publish, now.Add(3*time.Second), now.Add(4*time.Second), away)
	if b.failures != 1 || !b.ProbeAt(v, now).Equal(first) {
		t.Errorf("%+v", b)
	}
	began := now.Add(5 * time.Second)
	for range 20 { // probes
		b.Observe(Renewal, began, began.Add(time.Second), away)
		if pause := b.ProbeAt(v, began).Sub(began); pause > 5*time.Minute+time.Second {
			t.Errorf("%d failures: %s", b.failures, pause)
		}
		began = began.Add(time.Minute)
	}
	if b.failures != 21 {
		t.Errorf("%d failures", b.failures)
	}
	// Neither says that the CA works again: the registration authority denies also
	// while its CA is down.
	for _, o := range []issuer.Outcome{issuer.Denied, issuer.Canceled, issuer.NoPodToken, issuer.Throttled} {
		if b.Observe(Renewal, began, began, fmt.Errorf("%w: a test", o)) || !b.IsOpen() {
			t.Errorf("%v closed it", o)
		}
	}
	if !b.Observe(Publish, began, began, nil) || b.IsOpen() || b.Observe(Publish, began, began, nil) {
		t.Error("a success does not close it, once")
	}
}

// If the plugin itself is rejected, no pod of the node gets a certificate.
func TestRejectedCallerOpensTheBreaker(t *testing.T) {
	var b Breaker
	now := time.Now()
	b.Observe(Renewal, now, now, fmt.Errorf("%w: its token has expired", issuer.CallerRejected))
	if !b.IsOpen() {
		t.Error("it is closed")
	}
}
