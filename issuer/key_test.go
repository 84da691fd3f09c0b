package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"
)

// A pod with many RSA keys delays neither the keys of other types, nor the RSA key of a
// pod of another namespace: that key comes before almost all keys of the greedy pod.
func TestRSAKeysOfOnePodDelayNoOtherPod(t *testing.T) {
	const count = 100
	g := NewKeyGenerator()
	greedy, honest := Applicant{Pod: Pod{Namespace: "greedy", UID: "1"}}, Applicant{Pod: Pod{Namespace: "shop", UID: "2"}}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	done := 0
	var keys sync.WaitGroup
	for range count {
		keys.Go(func() {
			if _, err := g.Generate(ctx, greedy, RSA2048); err == nil {
				mu.Lock()
				done++
				mu.Unlock()
			}
		})
	}
	for begin := time.Now(); g.rsa.Waiting() < count/2 && time.Since(begin) < time.Minute; {
		time.Sleep(time.Millisecond)
	}
	for _, keyType := range []KeyType{ECDSAP256, RSA2048} {
		if key, err := g.Generate(t.Context(), honest, keyType); err != nil || !keyType.Matches(key.Signer) {
			t.Errorf("%s: %v", keyType, err)
		}
	}
	mu.Lock()
	before := done
	mu.Unlock()
	cancel()
	keys.Wait()
	// The honest pod's own RSA key takes as long as a few of the greedy pod's.
	if before > count*3/4 {
		t.Errorf("%d keys of another pod came first", before)
	}
}

func TestGiveUpWaitingForAKey(t *testing.T) {
	g := NewKeyGenerator()
	for i := range 2 { // slow keys in progress
		release, err := g.rsa.Acquire(t.Context(), Pod{Namespace: fmt.Sprint(i)}.Owner())
		if err != nil {
			t.Fatal(err)
		}
		defer release()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Generate(ctx, Applicant{Pod: Pod{Namespace: "0"}}, RSA2048); !errors.Is(err, context.Canceled) {
		t.Errorf("another RSA key: %v", err)
	}
	if _, err := g.Generate(t.Context(), Applicant{Pod: Pod{Namespace: "0"}}, ECDSAP256); err != nil {
		t.Errorf("an ECDSA key: %v", err)
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
