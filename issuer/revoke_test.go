package issuer_test

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// revokingSigner records what it revokes.
type revokingSigner struct {
	*hostileSigner
	revoked []string
}

func (s *revokingSigner) Revoke(_ context.Context, r issuer.Revocation) error {
	s.revoked = append(s.revoked, r.Serial)
	return nil
}

func newRevoking(t *testing.T) (*issuer.Issuer, *revokingSigner) {
	t.Helper()
	s := &revokingSigner{hostileSigner: newSigner(t)}
	i, err := issuer.New(issuer.Config{Signer: s, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return i, s
}

func issueBy(t *testing.T, i *issuer.Issuer) *issuer.Credential {
	t.Helper()
	c, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An issuer revokes what was read from a volume only for the holder of the key, and only
// its own valid certificates.
func TestUnprovenRevocation(t *testing.T) { synctest.Test(t, testUnprovenRevocation) }

func testUnprovenRevocation(t *testing.T) {
	i, s := newRevoking(t)
	foreign, _ := newRevoking(t)
	expired := issueBy(t, i)
	time.Sleep(2 * time.Hour)
	own, victim, alien := issueBy(t, i), issueBy(t, i), issueBy(t, foreign)
	of := func(c *issuer.Credential) issuer.Revocation {
		return issuer.Revocation{Serial: c.Leaf().SerialNumber.String(), Chain: c.Chain, Key: c.Key, Unproven: true}
	}
	with := func(r issuer.Revocation, change func(*issuer.Revocation)) issuer.Revocation { change(&r); return r }
	for name, test := range map[string]struct {
		revocation issuer.Revocation
		allowed    bool
	}{
		"its own":                     {of(own), true},
		"known to the plugin":         {issuer.Revocation{Serial: victim.Leaf().SerialNumber.String()}, true},
		"a serial number alone":       {issuer.Revocation{Serial: victim.Leaf().SerialNumber.String(), Unproven: true}, false},
		"another serial number":       {with(of(own), func(r *issuer.Revocation) { r.Serial = victim.Leaf().SerialNumber.String() }), false},
		"another key":                 {with(of(victim), func(r *issuer.Revocation) { r.Key = own.Key }), false},
		"no key":                      {with(of(victim), func(r *issuer.Revocation) { r.Key = issuer.PrivateKey{} }), false},
		"another CA":                  {of(alien), false},
		"expired":                     {of(expired), false},
		"the intermediate as a leaf":  {with(of(own), func(r *issuer.Revocation) { r.Chain = r.Chain[1:] }), false},
		"without its intermediate":    {with(of(own), func(r *issuer.Revocation) { r.Chain = r.Chain[:1] }), false},
		"another intermediate of one": {with(of(own), func(r *issuer.Revocation) { r.Chain = []*x509.Certificate{r.Chain[0], alien.Chain[1]} }), false},
	} {
		s.revoked = nil
		err := i.Revoke(t.Context(), test.revocation)
		if test.allowed != (err == nil) || test.allowed != (len(s.revoked) == 1) || !test.allowed && issuer.OutcomeOf(err) != issuer.Denied {
			t.Errorf("%s: %v, revoked %v", name, err, s.revoked)
		}
	}
}

// The caller learns which certificate was issued and cannot be used, if it is for the
// caller's key.
func TestUnusableCertificate(t *testing.T) {
	i, s := newRevoking(t)
	other := issueBy(t, i)
	for name, test := range map[string]struct {
		spoil  func(*x509.Certificate)
		answer func(*x509.Certificate) []*x509.Certificate
		known  bool
	}{
		"other names": {spoil: func(c *x509.Certificate) { c.DNSNames = nil }, known: true},
		"no chain":    {answer: func(leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf} }, known: true},
		"another key": {answer: func(*x509.Certificate) []*x509.Certificate { return other.Chain }},
		"nothing":     {answer: func(*x509.Certificate) []*x509.Certificate { return nil }},
	} {
		s.spoil, s.answer = func(*x509.Certificate) {}, test.answer
		if test.spoil != nil {
			s.spoil = test.spoil
		}
		_, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
		unusable, known := errors.AsType[*issuer.UnusableError](err)
		if issuer.OutcomeOf(err) != issuer.InvalidAnswer || known != test.known {
			t.Errorf("%s: %v", name, err)
		}
		if known && (unusable.Key.Signer == nil || len(unusable.Chain) == 0) {
			t.Errorf("%s: no key or no certificate", name)
		}
	}
}
