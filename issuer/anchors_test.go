package issuer_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"go.step.sm/crypto/minica"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
)

func newRoot(t *testing.T, key issuer.PrivateKey, notBefore, notAfter time.Time) *x509.Certificate {
	t.Helper()
	if key.Signer == nil {
		var err error
		if key, err = issuer.ECDSAP256.Generate(); err != nil {
			t.Fatal(err)
		}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Anchor"}, NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// The roots of pods are ordered: first the CA's own, and each only once.
func TestOrderOfRoots(t *testing.T) {
	now := time.Now()
	var roots []*x509.Certificate
	for i := range 8 {
		roots = append(roots, newRoot(t, issuer.PrivateKey{}, now.Add(-time.Duration(i)*time.Hour), now.Add(time.Hour)))
	}
	all := issuer.Roots{
		Own:        []*x509.Certificate{roots[0], roots[1]},
		Federated:  []*x509.Certificate{roots[2], roots[1], roots[3]},
		Additional: []*x509.Certificate{roots[4], roots[0], roots[5], roots[2]},
		Public:     []*x509.Certificate{roots[6], roots[7], roots[5], roots[6]},
	}
	want := []*x509.Certificate{roots[1], roots[0], roots[3], roots[2], roots[5], roots[4], roots[7], roots[6]}
	for range 10 {
		if got := all.All(); !slices.Equal(got, want) {
			t.Fatalf("%v", got)
		}
		for _, kind := range [][]*x509.Certificate{all.Own, all.Federated, all.Additional, all.Public} {
			slices.Reverse(kind)
		}
	}
}

// Additional and public roots are for pods: they verify nothing that the CA signs, and the
// issuer returns them nowhere else.
func TestAnchorsVerifyNothing(t *testing.T) {
	s := newChangingSigner(t)
	other, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	anchors := []*x509.Certificate{s.ca.Root}
	s.answer(issuer.Roots{Own: []*x509.Certificate{other.Root}}) // the signer's root is an anchor alone
	i, err := issuer.New(issuer.Config{
		Signer: s, Policy: allowAll, PublicRoots: anchors,
		AdditionalRoots: func() ([]*x509.Certificate, error) { return anchors, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); err == nil || !strings.Contains(err.Error(), "no chain to a root of the CA") {
		t.Errorf("a certificate under an additional root: %v", err)
	}
	if err := i.Verify(t.Context(), []*x509.Certificate{s.ca.Intermediate}); err == nil {
		t.Error("a chain to an additional root is verified")
	}
	if roots, err := i.Roots(t.Context()); err != nil || len(roots.Additional)+len(roots.Public) > 0 {
		t.Errorf("the roots that a registration authority answers: %+v, %v", roots, err)
	}
	if trusted := i.Trust().Trusted(); len(trusted) > 0 {
		t.Errorf("the server is verified by %d of them", len(trusted))
	}
	if latest := i.LatestRoots(); !slices.Equal(latest.Additional, anchors) || !slices.Equal(latest.Public, anchors) {
		t.Errorf("%+v", latest)
	}
}

// A changed file is read at the next refresh, also while the CA is down. A file that is
// broken is logged once, and the known roots stay.
func TestAdditionalRootsAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newChangingSigner(t)
		now := time.Now()
		a, b := newRoot(t, issuer.PrivateKey{}, now, now.Add(240*time.Hour)), newRoot(t, issuer.PrivateKey{}, now, now.Add(20*time.Minute))
		type contents struct {
			roots []*x509.Certificate
			err   error
		}
		var file atomic.Pointer[contents]
		file.Store(&contents{roots: []*x509.Certificate{a}})
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll, AdditionalRoots: func() ([]*x509.Certificate, error) {
			return file.Load().roots, file.Load().err
		}})
		if err != nil {
			t.Fatal(err)
		}
		var lines log[string]
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), funcr.New(func(_, args string) { lines.add(args) }, funcr.Options{})))
		defer stop()
		observed := log[[]*x509.Certificate]{}
		go i.FollowRoots(ctx, 5*time.Minute, func(issuer.Roots, error) { observed.add(i.LatestRoots().Additional) })
		synctest.Wait()
		last := func() []*x509.Certificate { all := observed.all(); return all[len(all)-1] }
		if !slices.Equal(last(), []*x509.Certificate{a}) {
			t.Errorf("at first: %v", last())
		}
		s.away.Store(true)
		file.Store(&contents{roots: []*x509.Certificate{a, b}})
		pass(6 * time.Minute)
		if !slices.Equal(last(), []*x509.Certificate{a, b}) {
			t.Errorf("after a change while the CA is down: %v", last())
		}
		s.away.Store(false)
		file.Store(&contents{err: errors.New("the file is broken")})
		pass(40 * time.Minute)
		if !slices.Equal(last(), []*x509.Certificate{a, b}) {
			t.Errorf("with a broken file: %v", last())
		}
		file.Store(&contents{roots: []*x509.Certificate{b}})
		pass(6 * time.Minute)
		if !slices.Equal(last(), []*x509.Certificate{b}) {
			t.Errorf("after the file was repaired: %v", last())
		}
		text := strings.Join(lines.all(), "\n")
		for message, times := range map[string]int{
			"Cannot read the additional roots; the known ones stay in use": 1, "the file is broken": 1,
			"New additional roots":           2,
			"An additional root has expired": 1,
			"A root of the CA has expired":   0,
		} {
			if got := strings.Count(text, message); got != times {
				t.Errorf("%q is logged %d times, not %d:\n%s", message, got, times, text)
			}
		}
	})
}

// An issuer whose additional roots cannot be read does not start.
func TestBrokenAdditionalRoots(t *testing.T) {
	_, err := issuer.New(issuer.Config{Signer: newSigner(t), Policy: allowAll, AdditionalRoots: func() ([]*x509.Certificate, error) {
		return nil, errors.New("the file is broken")
	}})
	if err == nil || err.Error() != "the file is broken" {
		t.Error(err)
	}
}

// No file of additional roots makes volumes larger than there is room for, or has keys that
// take seconds to use.
func TestLimitsOfAdditionalRoots(t *testing.T) {
	now := time.Now()
	root := newRoot(t, issuer.PrivateKey{}, now, now.Add(time.Hour))
	encoded := func(roots ...*x509.Certificate) (all []byte) {
		for _, root := range roots {
			all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
		}
		return all
	}
	if roots, err := issuer.ParseAdditionalRoots(encoded(slices.Repeat([]*x509.Certificate{root}, issuer.MaxAdditionalRoots+1)...)); err != nil || len(roots) != 1 {
		t.Errorf("the same root several times: %d, %v", len(roots), err)
	}
	var many []*x509.Certificate
	for range issuer.MaxAdditionalRoots + 1 {
		many = append(many, newRoot(t, issuer.PrivateKey{}, now, now.Add(time.Hour)))
	}
	if _, err := issuer.ParseAdditionalRoots(encoded(many[1:]...)); err != nil {
		t.Error(err)
	}
	if _, err := issuer.ParseAdditionalRoots(encoded(many...)); err == nil || !strings.Contains(err.Error(), "it has 257 certificates; 256 are allowed") {
		t.Errorf("too many: %v", err)
	}
	// It takes long to generate such a key. Another one signs the certificate.
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now, NotAfter: now.Add(time.Hour)}
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, newRoot(t, key, now, now.Add(time.Hour)), &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537}, key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if _, err := issuer.ParseAdditionalRoots(block); err == nil || !strings.Contains(err.Error(), "RSA key of 16384 bits; 8192 are allowed") {
		t.Errorf("a large key: %v", err)
	}
}
