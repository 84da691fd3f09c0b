package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer/fair"
)

// KeyType is an algorithm with its size, as users write it.
type KeyType string

// The key types, from the fastest to generate to the slowest.
const (
	ECDSAP256 KeyType = "ecdsa-p256"
	Ed25519   KeyType = "ed25519"
	ECDSAP384 KeyType = "ecdsa-p384"
	ECDSAP521 KeyType = "ecdsa-p521"
	RSA2048   KeyType = "rsa-2048"
	RSA3072   KeyType = "rsa-3072"
	RSA4096   KeyType = "rsa-4096"
)

// KeyTypes lists all key types.
func KeyTypes() []KeyType {
	return []KeyType{ECDSAP256, ECDSAP384, ECDSAP521, Ed25519, RSA2048, RSA3072, RSA4096}
}

// KeyGenerator generates private keys. An RSA key takes up to several seconds of a core,
// so pods have turns: a pod with many RSA keys does not delay the keys of other pods.
// Keys of other types are generated at once.
type KeyGenerator struct {
	rsa      *fair.Semaphore
	generate func(KeyType) (PrivateKey, error)
	prepared *preparedKeys
}

// NewKeyGenerator returns a generator that uses half of the cores for RSA keys, and at
// least two threads: one namespace leaves one of them to the others.
func NewKeyGenerator() *KeyGenerator {
	g := &KeyGenerator{rsa: fair.NewSemaphore(runtime.GOMAXPROCS(0) / 2), generate: KeyType.Generate}
	g.prepared = &preparedKeys{generate: KeyType.Generate, busy: g.rsa.Busy, wake: make(chan struct{}, 1), sizes: map[KeyType]*preparedSize{}}
	return g
}

// Prepare makes the generator prepare RSA keys ahead of need, in a goroutine of background
// that exists only while pods use RSA keys, and that ends with its context.
func (g *KeyGenerator) Prepare(background func(func(context.Context))) {
	g.prepared.mu.Lock()
	defer g.prepared.mu.Unlock()
	g.prepared.background = background
}

// Prepared returns how many keys of the type are ready.
func (g *KeyGenerator) Prepared(t KeyType) int { return g.prepared.count(t) }

// Generate returns a new key for the pod. It waits for other RSA keys, at most until ctx
// ends, unless the pod is starting and one is prepared.
func (g *KeyGenerator) Generate(ctx context.Context, pod Applicant, t KeyType) (PrivateKey, error) {
	if !strings.HasPrefix(string(t), "rsa-") {
		return g.generate(t)
	}
	owner := pod.Owner()
	g.prepared.use(owner, t)
	defer g.prepared.changed()
	if pod.Starting {
		if key, ok := g.prepared.take(owner, t); ok {
			return key, nil
		}
	}
	release, err := g.rsa.Acquire(ctx, owner)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("wait for other %s keys to be generated: %w", t, err)
	}
	defer release()
	if pod.Starting { // one may have become ready
		if key, ok := g.prepared.take(owner, t); ok {
			return key, nil
		}
	}
	return g.generate(t)
}

// Generate generates a key at once.
func (t KeyType) Generate() (PrivateKey, error) {
	var key crypto.Signer
	var err error
	switch t {
	case ECDSAP256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case ECDSAP521:
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case RSA2048:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		err = errors.New("the key type is unknown")
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate an %s key: %w", t, err)
	}
	return PrivateKey{key}, nil
}

// Matches tells whether key is of this type.
func (t KeyType) Matches(key crypto.Signer) bool {
	of, known := keyTypeOf(key.Public())
	return known && of == t
}

// keyTypeOf returns the type of a public key, if Generate makes such keys.
func keyTypeOf(public crypto.PublicKey) (t KeyType, known bool) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ECDSAP256, true
		case elliptic.P384():
			return ECDSAP384, true
		case elliptic.P521():
			return ECDSAP521, true
		}
	case ed25519.PublicKey:
		return Ed25519, true
	case *rsa.PublicKey:
		t = KeyType(fmt.Sprintf("rsa-%d", k.N.BitLen()))
		// 65537 is the exponent of every key that crypto/rsa generates.
		return t, k.E == 65537 && slices.Contains(KeyTypes(), t)
	}
	return "", false
}

// CheckKey returns an error unless it is cheap to verify a signature with the public
// key: P-256, P-384, P-521, Ed25519, or RSA with 2048 to 4096 bits. The keys of
// certificates from outside can have any size.
func CheckKey(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 4096 {
			return fmt.Errorf("an RSA key of %d bits: 2048 to 4096 bits are accepted", bits)
		}
		if k.E < 3 || k.E > 1<<31-1 || k.E%2 == 0 {
			return fmt.Errorf("an RSA key with the exponent %d", k.E)
		}
		return nil
	}
	return errors.New("the key is neither ECDSA (P-256, P-384, P-521) nor Ed25519 nor RSA")
}
