package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"math/big"
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

// Keys with which a signature is slow to verify are rejected.
func TestSlowKeysAreRejected(t *testing.T) {
	for _, kind := range KeyTypes() {
		key, err := kind.Generate()
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckKey(key.Public()); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	modulus := func(bits uint) *big.Int { return new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1) }
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.PublicKey{
		"RSA with 480,000 bits":     &rsa.PublicKey{N: modulus(480_000), E: 65537},
		"RSA with 4097 bits":        &rsa.PublicKey{N: modulus(4097), E: 65537},
		"RSA with 2047 bits":        &rsa.PublicKey{N: modulus(2047), E: 65537},
		"RSA with the exponent 1":   &rsa.PublicKey{N: modulus(2048), E: 1},
		"RSA with an even exponent": &rsa.PublicKey{N: modulus(2048), E: 65536},
		"P-224":                     &p224.PublicKey,
		"none":                      nil,
	} {
		if CheckKey(key) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
