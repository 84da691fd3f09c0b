package issuer_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.step.sm/crypto/minica"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer"
)

// recertified returns the CA with another certificate of the same intermediate.
func recertified(t *testing.T, ca *minica.CA, valid time.Duration) *minica.CA {
	t.Helper()
	next := *ca
	template := *ca.Intermediate
	template.NotBefore, template.NotAfter = time.Now().Add(-24*time.Hour).Truncate(time.Second), time.Now().Add(valid).Truncate(time.Second)
	template.SerialNumber = nil
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.Root, ca.Intermediate.PublicKey, ca.RootSigner)
	if err == nil {
		next.Intermediate, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &next
}

func logged(t *testing.T) (context.Context, *bytes.Buffer) {
	log := &bytes.Buffer{}
	return klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log)))), log
}

// The effective expiry of a credential is that of the certificate that expires first. The
// issuer warns about a certificate of the CA that limits leaves, once for each of them.
func TestLimitedCredentials(t *testing.T) {
	s := newSigner(t)
	i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
	if err != nil {
		t.Fatal(err)
	}
	ctx, log := logged(t)
	issue := func() *issuer.Credential {
		t.Helper()
		c, err := i.Issue(ctx, issuer.Applicant{}, request(), issuer.PrivateKey{})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := issue(); !c.NotAfter().Equal(c.Leaf().NotAfter) || c.LimitedBy() != "" || log.Len() > 0 {
		t.Errorf("until %s, limited by %q; log:\n%s", c.NotAfter(), c.LimitedBy(), log)
	}
	for n := 1; n <= 2; n++ {
		s.ca = recertified(t, s.ca, 10*time.Minute)
		for range 3 {
			c := issue()
			if !c.NotAfter().Equal(s.ca.Intermediate.NotAfter) || !strings.Contains(c.LimitedBy(), s.ca.Intermediate.SerialNumber.String()) {
				t.Errorf("until %s, limited by %q", c.NotAfter(), c.LimitedBy())
			}
		}
		if warnings := strings.Count(log.String(), "Warning: a certificate of the CA expires before"); warnings != n {
			t.Errorf("%d warnings about %d certificates:\n%s", warnings, n, log)
		}
	}
	if !strings.Contains(log.String(), fmt.Sprintf("MiniCA Intermediate CA\\\" (serial number %s)", s.ca.Intermediate.SerialNumber)) {
		t.Errorf("the warning does not name the intermediate:\n%s", log)
	}
}

// A certificate that peers reject because of the chain is not used, and the error names the
// certificate in it that has expired. The CA may replace that.
func TestExpiredChainIsUnavailable(t *testing.T) {
	for name, valid := range map[string]time.Duration{"expired": -time.Minute, "valid": time.Minute} {
		s := newSigner(t)
		s.ca = recertified(t, s.ca, valid)
		c, err := issue(t, s, allowAll, issuer.PrivateKey{})
		if (err == nil) != (valid > 0) {
			t.Fatalf("%s: %v, %v", name, c, err)
		}
		if err == nil {
			continue
		}
		want := fmt.Sprintf("the intermediate %q (serial number %s) expired at %s", s.ca.Intermediate.Subject.CommonName,
			s.ca.Intermediate.SerialNumber, s.ca.Intermediate.NotAfter.UTC().Format(time.RFC3339))
		if !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an unavailable issuer with %s", err, want)
		}
		if _, ok := errors.AsType[*issuer.UnusableError](err); !ok {
			t.Error("the certificate will not be revoked")
		}
	}
}

// Every certificate of a path to a root reaches the pod, in the order of the CA.
func TestCrossSignedChain(t *testing.T) {
	s, old := newSigner(t), newSigner(t)
	// minica's roots allow only one intermediate below them.
	certify := func(subject, by *minica.CA) *x509.Certificate {
		template := *subject.Root
		template.AuthorityKeyId, template.MaxPathLen = nil, 2
		issuer := *by.Root
		issuer.MaxPathLen = 2
		der, err := x509.CreateCertificate(rand.Reader, &template, &issuer, subject.Root.PublicKey, by.RootSigner)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	cross := certify(s.ca, old.ca)
	old.ca.Root = certify(old.ca, old.ca)
	s.answer = func(leaf *x509.Certificate) []*x509.Certificate {
		return []*x509.Certificate{leaf, s.ca.Intermediate, cross, s.ca.Root, old.ca.Root}
	}
	s.roots = []*x509.Certificate{s.ca.Root, old.ca.Root}
	c, err := issue(t, s, allowAll, issuer.PrivateKey{})
	if err != nil || !slices.EqualFunc(c.Chain[1:], []*x509.Certificate{s.ca.Intermediate, cross}, (*x509.Certificate).Equal) {
		t.Errorf("a chain of %d: %v", len(c.Chain), err)
	}
}

// tellingSigner is a CA that says what it signs with.
type tellingSigner struct {
	*hostileSigner
	mu    sync.Mutex
	tells func() ([]*x509.Certificate, error)
	asked []time.Time // for the roots
}

// change changes what the CA says.
func (s *tellingSigner) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *tellingSigner) times() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *tellingSigner) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	s.change(func() { s.asked = append(s.asked, time.Now()) })
	roots, err := s.Roots(ctx)
	roots.Asked = time.Now()
	return roots, err
}

func (s *tellingSigner) Intermediates(context.Context) ([]*x509.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tells()
}

// The issuer notices what the CA signs with, without a certificate of its own. It asks with
// the roots, and more often when the CA's chain is about to expire.
func TestIntermediatesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := newSigner(t)
		now := time.Now()
		signer.ca = recertified(t, signer.ca, 10*time.Minute)
		s := &tellingSigner{hostileSigner: signer}
		s.tells = func() ([]*x509.Certificate, error) { return []*x509.Certificate{s.ca.Intermediate}, nil }
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
		if err != nil {
			t.Fatal(err)
		}
		ctx, log := logged(t)
		ctx, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			i.FollowRoots(ctx, time.Hour, func(issuer.Roots, error) {})
			close(ended)
		}()
		synctest.Wait()
		if !i.CANotAfter().Equal(now.Add(10*time.Minute)) || len(i.LatestIntermediates()) != 1 {
			t.Errorf("the CA's chain is valid until %s\n%s", i.CANotAfter(), log)
		}
		time.Sleep(10*time.Minute - time.Second)
		synctest.Wait()
		asked := s.times()
		if n := len(asked); n < 12 || n > 60 {
			t.Errorf("asked %d times in the last 10 minutes", n)
		}
		for n := 1; n < len(asked); n++ {
			if gap := asked[n].Sub(asked[n-1]); gap < 4*time.Second {
				t.Errorf("asked %s after the last time", gap)
			}
		}

		// A new intermediate is noticed. A CA that does not say, says nonsense or has switched
		// back changes nothing.
		s.change(func() { s.ca = recertified(t, s.ca, 20*time.Hour) })
		want := s.ca.Intermediate.NotAfter
		time.Sleep(8 * time.Second)
		synctest.Wait()
		if !i.CANotAfter().Equal(want) {
			t.Errorf("the CA's chain is valid until %s, want %s", i.CANotAfter(), want)
		}
		other := newSigner(t)
		for _, answer := range []struct {
			certificates []*x509.Certificate
			err          error
		}{
			{nil, errors.New("HTTP 501")}, {nil, nil},
			{[]*x509.Certificate{other.ca.Intermediate}, nil}, {[]*x509.Certificate{s.ca.Root}, nil},
			{[]*x509.Certificate{recertified(t, s.ca, -time.Hour).Intermediate}, nil},
			{[]*x509.Certificate{recertified(t, s.ca, 15*time.Hour).Intermediate}, nil},
		} {
			before := len(s.times())
			s.change(func() {
				s.tells = func() ([]*x509.Certificate, error) { return answer.certificates, answer.err }
			})
			time.Sleep(time.Hour + 10*time.Minute)
			synctest.Wait()
			if n := len(s.times()) - before; !i.CANotAfter().Equal(want) || n < 1 || n > 2 {
				t.Errorf("%v: asked %d times; the CA's chain is valid until %s", answer, n, i.CANotAfter())
			}
		}
		stop()
		<-ended
	})
}

// The chain of a certificate shows a new intermediate, too, and makes the issuer announce it.
func TestSignedChainShowsANewIntermediate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := newSigner(t)
		s := &tellingSigner{hostileSigner: signer, tells: func() ([]*x509.Certificate, error) { return nil, nil }}
		s.ca = recertified(t, s.ca, 10*time.Minute)
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
		if err != nil {
			t.Fatal(err)
		}
		ctx, _ := logged(t)
		ctx, stop := context.WithCancel(ctx)
		var mu sync.Mutex
		var announced []time.Time
		ended := make(chan struct{})
		go func() {
			i.FollowRoots(ctx, 1000*time.Hour, func(issuer.Roots, error) {
				mu.Lock()
				defer mu.Unlock()
				announced = append(announced, i.CANotAfter())
			})
			close(ended)
		}()
		issue := func() {
			if _, err := i.Issue(ctx, issuer.Applicant{}, request(), issuer.PrivateKey{}); err != nil {
				t.Fatal(err)
			}
		}
		issue()
		time.Sleep(3 * time.Second)
		s.ca = recertified(t, s.ca, 20*time.Hour)
		synctest.Wait()
		mu.Lock()
		before := len(announced)
		mu.Unlock()
		for range 10 {
			issue()
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(announced) != before+1 || !announced[before].Equal(s.ca.Intermediate.NotAfter) {
			t.Errorf("announced %v", announced[before:])
		}
		stop()
		<-ended
	})
}
