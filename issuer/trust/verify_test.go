package trust_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer/trust"
)

// validity is the validity of a certificate, counted from now.
type validity struct{ from, until time.Duration }

// newChain returns the leaf of a server, its intermediate and their root, with these validities.
func newChain(t *testing.T, validities [3]validity) (chain [3]*x509.Certificate) {
	t.Helper()
	now := time.Now()
	var parent *x509.Certificate
	var signer *ecdsa.PrivateKey
	for n := 2; n >= 0; n-- {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(n + 1)), Subject: pkix.Name{CommonName: []string{"Leaf", "Intermediate", "Root"}[n]},
			NotBefore: now.Add(validities[n].from), NotAfter: now.Add(validities[n].until),
			IsCA: n > 0, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		}
		if n > 0 {
			template.KeyUsage = x509.KeyUsageCertSign
		} else {
			template.DNSNames = []string{"ca.example.com"}
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		if chain[n], err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		parent, signer = chain[n], key
	}
	return chain
}

// A server's certificate that is not valid yet, because this machine's clock is behind, is
// accepted within the tolerance.
func TestVerifyServer(t *testing.T) {
	usual := validity{-time.Minute, time.Hour}
	soon, later, past := validity{4 * time.Minute, time.Hour}, validity{6 * time.Minute, time.Hour}, validity{-time.Hour, -time.Second}
	for name, test := range map[string]struct {
		validities [3]validity
		valid      bool
	}{
		"all valid":                     {[3]validity{usual, usual, usual}, true},
		"leaf soon":                     {[3]validity{soon, usual, usual}, true},
		"intermediate soon":             {[3]validity{usual, soon, usual}, true},
		"root soon":                     {[3]validity{usual, usual, soon}, true},
		"one after the other":           {[3]validity{{time.Minute, time.Hour}, {2 * time.Minute, time.Hour}, {3 * time.Minute, time.Hour}}, true},
		"leaf later":                    {[3]validity{later, usual, usual}, false},
		"intermediate later":            {[3]validity{usual, later, usual}, false},
		"root later":                    {[3]validity{usual, usual, later}, false},
		"leaf expired":                  {[3]validity{past, usual, usual}, false},
		"intermediate expired":          {[3]validity{usual, past, usual}, false},
		"root expired":                  {[3]validity{usual, usual, past}, false},
		"leaf soon, root expired":       {[3]validity{soon, usual, past}, false},
		"leaf expires before root soon": {[3]validity{{-time.Hour, time.Minute}, usual, soon}, false},
	} {
		chain := newChain(t, test.validities)
		err := trust.VerifyServer(chain[:2], "ca.example.com", chain[2:])
		_, typed := errors.AsType[*tls.CertificateVerificationError](err)
		if valid := err == nil; valid != test.valid || !valid && (!typed || !trust.IsOutsideValidity(err)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	chain := newChain(t, [3]validity{soon, soon, soon})
	if err := trust.VerifyServer(chain[:2], "other.example.com", chain[2:]); err == nil || trust.IsOutsideValidity(err) {
		t.Errorf("another host: %v", err)
	}
	foreign := newChain(t, [3]validity{usual, usual, usual})
	if err := trust.VerifyServer(chain[:2], "ca.example.com", foreign[2:]); err == nil || trust.IsOutsideValidity(err) {
		t.Errorf("another root: %v", err)
	}
	if err := trust.VerifyServer(nil, "ca.example.com", chain[2:]); err == nil {
		t.Error("no certificate is accepted")
	}
}
