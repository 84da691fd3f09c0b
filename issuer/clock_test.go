package issuer_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// aheadSigner is a CA whose clock is ahead.
type aheadSigner struct{ *hostileSigner }

const comparison = "the clock of the CA is 8m0s ahead of this machine's"

func (aheadSigner) CompareClocks() string { return comparison }

// Errors that clocks may have caused compare them, and others do not.
func TestErrorsCompareTheClocks(t *testing.T) {
	for name, test := range map[string]struct {
		spoil    func(*x509.Certificate)
		want     string
		outcome  issuer.Outcome
		compares bool
	}{
		"not valid yet": {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(8 * time.Minute) }, "by the clock of this machine", issuer.Unavailable, true},
		"expired": {func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}, "the clock of this machine shows", issuer.InvalidAnswer, true},
		"too long":  {func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(8 * time.Minute) }, "longer than the requested", issuer.InvalidAnswer, true},
		"a CA name": {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "ca") }, "added DNS name", issuer.InvalidAnswer, false},
	} {
		s := newSigner(t)
		s.spoil = test.spoil
		_, err := issue(t, aheadSigner{s}, allowAll, issuer.PrivateKey{})
		if issuer.OutcomeOf(err) != test.outcome || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), comparison) != test.compares {
			t.Errorf("%s: %v: %v", name, issuer.OutcomeOf(err), err)
		}
	}
}

func TestCredentialIsValidOnceItsWholeChainIs(t *testing.T) {
	now := time.Now()
	leaf, intermediate := &x509.Certificate{NotBefore: now}, &x509.Certificate{NotBefore: now.Add(time.Minute)}
	for _, chain := range [][]*x509.Certificate{{leaf, intermediate}, {intermediate, leaf}} {
		if got := (&issuer.Credential{Chain: chain}).ValidFrom(); !got.Equal(now.Add(time.Minute)) {
			t.Errorf("valid in %s, want 1m", got.Sub(now))
		}
	}
}
