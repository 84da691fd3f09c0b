package server

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/trust"
)

// stoppableSigner is a CA that the test can stop.
type stoppableSigner struct {
	root  atomic.Pointer[x509.Certificate]
	key   crypto.Signer
	down  atomic.Bool
	asked atomic.Int64
}

func newStoppableSigner(t *testing.T) *stoppableSigner {
	t.Helper()
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
	}
	s := &stoppableSigner{key: key.Signer}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s.root.Store(root)
	return s
}

func (*stoppableSigner) Connect(context.Context) error { return nil }
func (*stoppableSigner) Trust() *trust.Store           { return nil }

func (s *stoppableSigner) Roots(context.Context) (issuer.Roots, error) {
	return issuer.Roots{Own: []*x509.Certificate{s.root.Load()}, Asked: time.Now()}, nil
}

func (s *stoppableSigner) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	return s.Roots(ctx)
}

func (s *stoppableSigner) Sign(_ context.Context, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	s.asked.Add(1)
	if s.down.Load() {
		return nil, fmt.Errorf("%w: no route to host", issuer.Unavailable)
	}
	der, err := x509.CreateCertificate(nil, &x509.Certificate{
		SerialNumber: big.NewInt(s.asked.Load()), Subject: req.CSR.Subject, DNSNames: req.CSR.DNSNames, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(req.Request.Duration),
	}, s.root.Load(), req.CSR.PublicKey, s.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return []*x509.Certificate{leaf}, err
}

// keeping runs the test in virtual time, while the server keeps a certificate of a day.
// The CA is down at first if down is true.
func keeping(t *testing.T, down bool, test func(t *testing.T, ca *stoppableSigner, s *serving)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := newStoppableSigner(t)
		ca.down.Store(down)
		s, err := newServing(Serving{Issuer: "default", Signer: ca, Names: []names.DNSName{names.Must(names.ParseDNSName("ra.example.com"))}, Lifetimes: issuer.Lifetimes{Default: 24 * time.Hour}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.keep(ctx)
		}()
		test(t, ca, s)
		stop()
		<-done
	})
}

// within waits for a valid certificate.
func within(t *testing.T, s *serving, limit time.Duration) {
	t.Helper()
	time.Sleep(limit)
	synctest.Wait()
	if err := s.err(); err != nil {
		t.Errorf("after %s: %v", limit, err)
	}
}

func TestOwnCertificateNeverExpires(t *testing.T) {
	keeping(t, false, func(t *testing.T, ca *stoppableSigner, s *serving) {
		for range 30 * 24 {
			within(t, s, time.Hour)
		}
		if asked := ca.asked.Load(); asked < 30 || asked > 60 {
			t.Errorf("%d certificates of a day in 30 days", asked)
		}
	})
}

// An outage that began before the first certificate, or that outlasts the certificate,
// ends for node plugins seconds after it ends for the CA.
func TestOwnCertificateIsRetriedWithinSeconds(t *testing.T) {
	for name, begin := range map[string]time.Duration{"without a certificate": 0, "with an expired certificate": 15 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			keeping(t, begin == 0, func(t *testing.T, ca *stoppableSigner, s *serving) {
				time.Sleep(begin)
				ca.down.Store(true)
				time.Sleep(10 * time.Hour)
				synctest.Wait()
				if err := s.err(); err == nil {
					t.Fatal("the certificate is valid without a CA")
				}
				before := ca.asked.Load()
				time.Sleep(time.Hour)
				if asked := ca.asked.Load() - before; asked < 360 || asked > 800 {
					t.Errorf("%d tries in an hour", asked)
				}
				ca.down.Store(false)
				within(t, s, 20*time.Second)
			})
		})
	}
}

// A wait that began before the machine was suspended must be short, too: its timer stands
// still meanwhile, and the certificate may expire.
func TestOwnCertificateIsRetriedWithinSecondsAlsoBeforeItExpires(t *testing.T) {
	keeping(t, false, func(t *testing.T, ca *stoppableSigner, s *serving) {
		within(t, s, time.Hour)
		due := renewal.Validity{Issued: time.Now(), NotAfter: s.current.Load().Leaf.NotAfter, Spread: 1}.Due()
		ca.down.Store(true)
		time.Sleep(time.Until(due) + time.Minute)
		first := s.current.Load()
		ca.down.Store(false)
		within(t, s, 20*time.Second)
		if s.current.Load() == first {
			t.Error("the certificate was not renewed")
		}
	})
}

// expiring gives the CA a root with the same key that is valid for the duration.
func (s *stoppableSigner) expiring(t *testing.T, valid time.Duration) {
	t.Helper()
	template := *s.root.Load()
	template.SerialNumber, template.NotAfter = big.NewInt(time.Now().Unix()), time.Now().Add(valid)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, s.key.Public(), s.key)
	root, err2 := x509.ParseCertificate(der)
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	s.root.Store(root)
}

// The CA's root expires before the server's certificate. The server is ready until then, asks
// seldom for a certificate that gains nothing, and early when the CA has a new root.
func TestOwnCertificateIsLimitedByItsChain(t *testing.T) {
	keeping(t, true, func(t *testing.T, ca *stoppableSigner, s *serving) {
		ca.expiring(t, 10*time.Hour)
		root := ca.root.Load()
		ca.down.Store(false)
		within(t, s, time.Minute)
		if at := s.validity.Load(); !at.NotAfter.Equal(root.NotAfter) || !strings.Contains(at.LimitedBy, root.SerialNumber.String()) {
			t.Errorf("%+v", at)
		}
		before := ca.asked.Load()
		within(t, s, 10*time.Hour-2*time.Minute)
		if n := ca.asked.Load() - before; n < 2 || n > 20 {
			t.Errorf("%d certificates in 10 hours", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := s.err(); err == nil || !strings.Contains(err.Error(), `the root "Root" (serial number `+root.SerialNumber.String()+"), which the registration authority's own certificate needs, expired at ") {
			t.Errorf("after the root's expiry: %v", err)
		}
		ca.expiring(t, 10*time.Hour)
		within(t, s, time.Minute)

		// Only a longer chain makes it renew early, and only once.
		first := s.current.Load()
		s.renewEarly(ca.root.Load().NotAfter)
		within(t, s, time.Minute)
		if s.current.Load() != first {
			t.Error("renewed early without a longer chain")
		}
		longer := time.Now().Add(100 * time.Hour)
		s.renewEarly(longer)
		within(t, s, time.Minute)
		second := s.current.Load()
		if second == first {
			t.Error("not renewed early")
		}
		s.renewEarly(longer)
		within(t, s, time.Minute)
		if s.current.Load() != second {
			t.Error("renewed early twice for the same chain")
		}
	})
}
