package stepca_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/proxy"
)

// behindProxy returns a proxy in front of the CA, and the configuration to use it.
func behindProxy(t *testing.T, ca *embeddedca.CA) (*proxy.Proxy, stepca.Config) {
	t.Helper()
	p, err := proxy.Start(ca.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	c := configFor(ca)
	c.URL = "https://" + p.Address()
	return p, c
}

func set(t *testing.T, p *proxy.Proxy, f proxy.Fault) {
	t.Helper()
	if err := p.Set(f); err != nil {
		t.Fatal(err)
	}
}

// The signer detects a connection whose peer disappeared silently while it waits for
// the answer, and signs over a new connection.
func TestDeadConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	p, c := behindProxy(t, ca)
	c.Timeout = 0 // as in production
	s := newSigner(t, c)
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	connections := p.Connections()
	sent, _ := p.Bytes()
	set(t, p, proxy.Blackhole)
	signed := make(chan error)
	go func() {
		_, err := s.Sign(t.Context(), signingRequest(t))
		signed <- err
	}()
	for now := sent; now == sent; now, _ = p.Bytes() {
		time.Sleep(time.Millisecond)
	}
	set(t, p, proxy.None)
	if err := <-signed; err != nil || p.Connections() != connections+1 || ca.Signs() != 1 {
		t.Errorf("%d more connections, %d signing requests: %v", p.Connections()-connections, ca.Signs(), err)
	}
}

// While the CA does not answer, every call fails with Unavailable, in time. After
// the outage, dead connections delay calls only until the signer detects them.
func TestEveryCallIsBounded(t *testing.T) {
	t.Parallel()
	for _, connected := range []bool{false, true} {
		t.Run(fmt.Sprintf("connected before: %v", connected), func(t *testing.T) {
			t.Parallel()
			p, c := behindProxy(t, startCA(t))
			c.Timeout = time.Second
			s := newSigner(t, c)
			if connected {
				if err := s.Connect(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			set(t, p, proxy.Blackhole)
			for name, call := range map[string]func() error{
				"sign":   func() error { _, err := s.Sign(t.Context(), signingRequest(t)); return err },
				"roots":  func() error { _, err := s.RefreshRoots(t.Context()); return err },
				"revoke": func() error { return s.Revoke(t.Context(), issuer.Revocation{Serial: "1"}) },
			} {
				begin := time.Now()
				if err := call(); !errors.Is(err, issuer.Unavailable) {
					t.Errorf("%s: %v", name, err)
				}
				if took := time.Since(begin); took > 14*time.Second { // the default timeout is 15 s
					t.Errorf("%s took %s", name, took)
				}
			}
			set(t, p, proxy.None)
			for begin := time.Now(); ; {
				_, err := s.Sign(t.Context(), signingRequest(t))
				if err == nil {
					break
				}
				if time.Since(begin) > time.Minute {
					t.Fatalf("the CA answers again, but Sign fails: %v", err)
				}
			}
		})
	}
}

// A canceled call says nothing about the CA's availability.
func TestCanceledCallIsNoOutage(t *testing.T) {
	t.Parallel()
	p, c := behindProxy(t, startCA(t))
	s := newSigner(t, c)
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	set(t, p, proxy.Blackhole)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := s.Sign(ctx, signingRequest(t)); issuer.OutcomeOf(err) != issuer.Canceled {
		t.Errorf("sign: %v", err)
	}
	if _, err := s.RefreshRoots(ctx); issuer.OutcomeOf(err) != issuer.Canceled {
		t.Errorf("roots: %v", err)
	}
}

// Wherever the connection breaks, the outcome is Unavailable or a success, and never
// a denial. One Sign opens only a few connections.
func TestConnectionsThatBreak(t *testing.T) {
	t.Parallel()
	p, c := behindProxy(t, startCA(t))
	faults := map[string]proxy.Fault{"refuse": proxy.Refuse, "reset": proxy.Reset, "reset answer": proxy.ResetAnswer}
	for after := range int64(40) {
		faults[fmt.Sprintf("truncate after %d bytes", 61*after)] = proxy.Truncate(61 * after)
	}
	s := newSigner(t, c)
	for name, fault := range faults {
		if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
			t.Errorf("before %s: %v", name, err)
		}
		before := p.Connections()
		set(t, p, fault)
		_, err := s.Sign(t.Context(), signingRequest(t))
		if err != nil && !errors.Is(err, issuer.Unavailable) || errors.Is(err, issuer.Denied) {
			t.Errorf("%s: %v", name, err)
		}
		if more := p.Connections() - before; more > 3 {
			t.Errorf("%s: %d more connections", name, more)
		}
		set(t, p, proxy.None)
	}
}
