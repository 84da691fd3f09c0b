package issuer

import (
	"context"
	"errors"
	"runtime"
	"testing"
)

// RSA keys leave half of the cores to other work: other keys do not wait for them.
func TestRSAKeysAreBounded(t *testing.T) {
	g := NewKeyGenerator()
	if cap(g.rsa) != max(1, runtime.GOMAXPROCS(0)/2) {
		t.Errorf("%d at a time", cap(g.rsa))
	}
	for range cap(g.rsa) {
		g.rsa <- struct{}{} // keys that take long
	}
	if key, err := g.Generate(t.Context(), ECDSAP256); err != nil || !ECDSAP256.Matches(key.Signer) {
		t.Errorf("an ECDSA key waited: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Generate(ctx, RSA2048); !errors.Is(err, context.Canceled) {
		t.Errorf("another RSA key: %v", err)
	}
	<-g.rsa
	if key, err := g.Generate(t.Context(), RSA2048); err != nil || !RSA2048.Matches(key.Signer) || len(g.rsa) != cap(g.rsa)-1 {
		t.Errorf("when one is done: %v", err)
	}
}
