package issuer

import (
	"context"
	"errors"
	"runtime"
	"testing"
)

// At most half of the cores generate RSA keys, so that other keys need not wait.
func TestRSAKeysAreBounded(t *testing.T) {
	g := NewKeyGenerator()
	if cap(g.rsa) != max(1, runtime.GOMAXPROCS(0)/2) {
		t.Errorf("%d RSA keys at a time", cap(g.rsa))
	}
	for range cap(g.rsa) {
		g.rsa <- struct{}{} // slow keys in progress
	}
	if key, err := g.Generate(t.Context(), ECDSAP256); err != nil || !ECDSAP256.Matches(key.Signer) {
		t.Errorf("an ECDSA key waited for RSA keys: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Generate(ctx, RSA2048); !errors.Is(err, context.Canceled) {
		t.Errorf("another RSA key: %v", err)
	}
	<-g.rsa
	if key, err := g.Generate(t.Context(), RSA2048); err != nil || !RSA2048.Matches(key.Signer) || len(g.rsa) != cap(g.rsa)-1 {
		t.Errorf("after one RSA key is done: %v", err)
	}
}
