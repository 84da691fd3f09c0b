package chain_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer/chain"
)

var (
	now    = time.Now().UTC().Truncate(time.Second)
	serial = big.NewInt(1000)
)

// authority is a name with a key, for which others issue certificates.
type authority struct {
	name string
	key  crypto.Signer
}

func newAuthority(t testing.TB, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return authority{name, key}
}

// certify makes a certificate of the authority by another one, or by itself, that is valid
// from an hour ago for the duration from now on.
func (a authority) certify(t testing.TB, by authority, valid time.Duration, change ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial.Add(serial, big.NewInt(1))
	template := &x509.Certificate{
		SerialNumber: new(big.Int).Set(serial), Subject: pkix.Name{CommonName: a.name}, DNSNames: nil,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(valid),
	}
	for _, f := range change {
		f(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: by.name}}, a.key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func isLeaf(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.DNSNames = false, x509.KeyUsageDigitalSignature, []string{"web.shop"}
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
}

// pki is a CA whose root is being replaced. In the fields, B_A is the certificate of B by A.
type pki struct {
	leaf, issuing_New, issuing_Old, new_Old, old_New, new_New, old_Old, other_Other, issuing_Other *x509.Certificate
}

const day = 24 * time.Hour

func newPKI(t testing.TB) pki {
	t.Helper()
	old, next, other := newAuthority(t, "Old Root"), newAuthority(t, "New Root"), newAuthority(t, "Other Root")
	issuing, web := newAuthority(t, "Issuing CA"), newAuthority(t, "web")
	return pki{
		leaf:        web.certify(t, issuing, day, isLeaf),
		issuing_New: issuing.certify(t, next, 90*day), issuing_Old: issuing.certify(t, old, 80*day), issuing_Other: issuing.certify(t, other, 90*day),
		new_Old: next.certify(t, old, 70*day), old_New: old.certify(t, next, 70*day),
		new_New: next.certify(t, next, 1000*day), old_Old: old.certify(t, old, 100*day), other_Other: other.certify(t, other, 1000*day),
	}
}

type certificates = []*x509.Certificate

// Peers get every certificate that belongs to a path to a known root, each once, and no
// self-signed one. The order is the CA's, and a certificate follows the one that it certifies.
func TestCertificates(t *testing.T) {
	p := newPKI(t)
	for name, test := range map[string]struct{ sent, roots, want certificates }{
		"one path":                      {certificates{p.leaf, p.issuing_New}, certificates{p.new_New}, certificates{p.leaf, p.issuing_New}},
		"the root is sent":              {certificates{p.leaf, p.issuing_New, p.new_New}, certificates{p.new_New}, certificates{p.leaf, p.issuing_New}},
		"a cross-signed root":           {certificates{p.leaf, p.issuing_New, p.new_Old}, certificates{p.new_New, p.old_Old}, certificates{p.leaf, p.issuing_New, p.new_Old}},
		"all roots are sent":            {certificates{p.leaf, p.new_New, p.issuing_New, p.old_Old, p.new_Old}, certificates{p.new_New, p.old_Old}, certificates{p.leaf, p.issuing_New, p.new_Old}},
		"only the old root is known":    {certificates{p.leaf, p.issuing_New, p.new_Old}, certificates{p.old_Old}, certificates{p.leaf, p.issuing_New, p.new_Old}},
		"the old root is gone":          {certificates{p.leaf, p.issuing_New, p.new_Old}, certificates{p.new_New}, certificates{p.leaf, p.issuing_New}},
		"an order that breaks the path": {certificates{p.leaf, p.new_Old, p.issuing_New}, certificates{p.new_New, p.old_Old}, certificates{p.leaf, p.issuing_New, p.new_Old}},
		"a cross-signed intermediate":   {certificates{p.leaf, p.issuing_New, p.issuing_Old}, certificates{p.new_New, p.old_Old}, certificates{p.leaf, p.issuing_New, p.issuing_Old}},
		"the CA prefers the old root":   {certificates{p.leaf, p.issuing_Old, p.issuing_New}, certificates{p.new_New, p.old_Old}, certificates{p.leaf, p.issuing_Old, p.issuing_New}},
		"both are cross-signed": {certificates{p.leaf, p.issuing_New, p.issuing_Old, p.new_Old}, certificates{p.new_New, p.old_Old},
			certificates{p.leaf, p.issuing_New, p.new_Old, p.issuing_Old}},
		"each once":                            {certificates{p.leaf, p.issuing_New, p.new_Old, p.issuing_New, p.leaf, p.new_Old}, certificates{p.new_New, p.old_Old}, certificates{p.leaf, p.issuing_New, p.new_Old}},
		"others":                               {certificates{p.leaf, p.other_Other, p.issuing_Other, p.issuing_New}, certificates{p.new_New}, certificates{p.leaf, p.issuing_New}},
		"roots certify mutually":               {certificates{p.leaf, p.issuing_New, p.new_Old, p.old_New}, certificates{p.new_New, p.old_Old}, certificates{p.leaf, p.issuing_New, p.new_Old}},
		"a known root that is not self-signed": {certificates{p.leaf, p.issuing_New, p.new_Old}, certificates{p.new_Old}, certificates{p.leaf, p.issuing_New, p.new_Old}},
		"the same root twice":                  {certificates{p.leaf, p.issuing_New}, certificates{p.new_New, p.new_New}, certificates{p.leaf, p.issuing_New}},
	} {
		t.Run(name, func(t *testing.T) {
			sent := slices.Clone(test.sent)
			c, err := chain.Verify(test.sent, test.roots, now, x509.ExtKeyUsageAny)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(c.Certificates, test.want, (*x509.Certificate).Equal) {
				t.Errorf("got %s, want %s", names(c.Certificates), names(test.want))
			}
			if !slices.Equal(test.sent, sent) {
				t.Error("Verify changed its argument")
			}
		})
	}
	// crypto/x509 tries the intermediate with the fitting key identifier first.
	root, issuing, web := newAuthority(t, "Root"), newAuthority(t, "Issuing CA"), newAuthority(t, "web")
	leaf := web.certify(t, issuing, day, isLeaf, func(c *x509.Certificate) { c.AuthorityKeyId = []byte{1} })
	first := issuing.certify(t, root, day, func(c *x509.Certificate) { c.SubjectKeyId = []byte{2} })
	second := issuing.certify(t, root, day, func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} })
	sent := certificates{leaf, first, second}
	c, err := chain.Verify(sent, certificates{root.certify(t, root, day)}, now, x509.ExtKeyUsageAny)
	if err != nil || !slices.EqualFunc(c.Certificates, sent, (*x509.Certificate).Equal) {
		t.Errorf("got %s in another order, %v", names(c.Certificates), err)
	}
	for name, test := range map[string]struct{ sent, roots certificates }{
		"no certificate":       {nil, certificates{p.new_New}},
		"no root":              {certificates{p.leaf, p.issuing_New}, nil},
		"no intermediate":      {certificates{p.leaf}, certificates{p.new_New}},
		"another root":         {certificates{p.leaf, p.issuing_New}, certificates{p.other_Other}},
		"the root of the CA":   {certificates{p.new_New}, certificates{p.new_New}},
		"the wrong leaf first": {certificates{p.old_New, p.leaf, p.issuing_New}, certificates{p.old_Old}},
	} {
		var invalid *chain.ValidityError
		if _, err := chain.Verify(test.sent, test.roots, now, x509.ExtKeyUsageAny); err == nil || errors.As(err, &invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func names(all certificates) string {
	var texts []string
	for _, c := range all {
		texts = append(texts, c.Subject.CommonName+" by "+c.Issuer.CommonName)
	}
	return strings.Join(texts, ", ")
}

// The effective expiry is that of the certificate that expires first, on the path that is
// valid longest.
func TestExpiry(t *testing.T) {
	root, issuing, old, web := newAuthority(t, "Root"), newAuthority(t, "Issuing CA"), newAuthority(t, "Old Root"), newAuthority(t, "web")
	expiring := func(a, by authority, valid time.Duration) *x509.Certificate { return a.certify(t, by, valid) }
	leaf := web.certify(t, issuing, time.Hour, isLeaf)
	good := expiring(root, root, 1000*time.Hour)
	goodIssuing, shortIssuing := expiring(issuing, root, 100*time.Hour), expiring(issuing, root, 10*time.Minute)
	equal := expiring(issuing, root, time.Hour)
	shortRoot := expiring(root, root, 5*time.Minute)
	oldRoot, viaOld := expiring(old, old, 50*time.Minute), expiring(root, old, 20*time.Minute)
	expiredRoot, expiredIssuing := expiring(root, root, -time.Second), expiring(issuing, root, -time.Minute)
	at := func(after time.Duration) string { return now.Add(after).Format(time.RFC3339) }
	later := issuing.certify(t, root, 100*time.Hour, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) })
	soon := issuing.certify(t, root, 100*time.Hour, func(c *x509.Certificate) { c.NotBefore = now.Add(2 * time.Minute) })
	for name, test := range map[string]struct {
		sent, roots certificates
		first       *x509.Certificate
		ca          time.Duration // the expiry of the CA's part from now on
		invalid     string        // a part of the error; empty for none
	}{
		"the leaf":               {sent: certificates{leaf, goodIssuing}, roots: certificates{good}, first: leaf, ca: 100 * time.Hour},
		"together":               {sent: certificates{leaf, equal}, roots: certificates{good}, first: leaf, ca: time.Hour},
		"the intermediate":       {sent: certificates{leaf, shortIssuing}, roots: certificates{good}, first: shortIssuing, ca: 10 * time.Minute},
		"the root":               {sent: certificates{leaf, shortIssuing}, roots: certificates{shortRoot}, first: shortRoot, ca: 5 * time.Minute},
		"another intermediate":   {sent: certificates{leaf, shortIssuing, goodIssuing}, roots: certificates{good}, first: leaf, ca: 100 * time.Hour},
		"another root":           {sent: certificates{leaf, shortIssuing}, roots: certificates{shortRoot, good}, first: shortIssuing, ca: 10 * time.Minute},
		"only a cross-signature": {sent: certificates{leaf, goodIssuing, viaOld}, roots: certificates{shortRoot, oldRoot}, first: viaOld, ca: 20 * time.Minute},
		"an expired root beside": {sent: certificates{leaf, shortIssuing, viaOld}, roots: certificates{expiredRoot, oldRoot}, first: shortIssuing, ca: 10 * time.Minute},
		"an expired root": {sent: certificates{leaf, goodIssuing}, roots: certificates{expiredRoot}, first: expiredRoot, ca: -time.Second,
			invalid: `the root "Root" (serial number ` + expiredRoot.SerialNumber.String() + ") expired at " + at(-time.Second)},
		"an expired intermediate": {sent: certificates{leaf, expiredIssuing}, roots: certificates{good}, first: expiredIssuing, ca: -time.Minute,
			invalid: `the intermediate "Issuing CA" (serial number ` + expiredIssuing.SerialNumber.String() + ") expired at " + at(-time.Minute)},
		"not valid yet": {sent: certificates{leaf, later}, roots: certificates{good}, first: leaf, ca: 100 * time.Hour,
			invalid: `the intermediate "Issuing CA" (serial number ` + later.SerialNumber.String() + ") is not yet valid: it is valid from " + at(time.Hour)},
		"valid in two minutes":                         {sent: certificates{leaf, soon}, roots: certificates{good}, first: leaf, ca: 100 * time.Hour},
		"an intermediate that is not valid yet beside": {sent: certificates{leaf, shortIssuing, later}, roots: certificates{good}, first: shortIssuing, ca: 10 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := chain.Verify(test.sent, test.roots, now, x509.ExtKeyUsageAny)
			var invalid *chain.ValidityError
			switch {
			case test.invalid == "" && err != nil:
				t.Fatal(err)
			case test.invalid != "" && (!errors.As(err, &invalid) || err.Error() != test.invalid):
				t.Fatalf("got %v, want %s", err, test.invalid)
			}
			if !c.First.Equal(test.first) || !c.NotAfter().Equal(test.first.NotAfter) || c.CANotAfter.Sub(now) != test.ca {
				t.Errorf("%s expires first, at %s; the CA's part at %s", chain.Describe(c.First), c.NotAfter(), c.CANotAfter)
			}
			if limited := !test.first.Equal(leaf); limited != (c.LimitedBy() != "") || limited && c.LimitedBy() != chain.Describe(test.first) {
				t.Errorf("limited by %q", c.LimitedBy())
			}
		})
	}
	// Each certificate is valid at its notAfter, and not after it (RFC 5280, section 4.1.2.5).
	for after, valid := range map[time.Duration]bool{0: true, time.Second: false} {
		if _, err := chain.Verify(certificates{leaf, shortIssuing}, certificates{good}, shortIssuing.NotAfter.Add(after), x509.ExtKeyUsageAny); (err == nil) != valid {
			t.Errorf("%s after the expiry: %v", after, err)
		}
	}
	// A path that is not valid helps no peer, and some older verifiers stop at it.
	c, err := chain.Verify(certificates{leaf, expiredIssuing, shortIssuing, later, soon}, certificates{good}, now, x509.ExtKeyUsageAny)
	if err != nil || !slices.EqualFunc(c.Certificates, certificates{leaf, shortIssuing, soon}, (*x509.Certificate).Equal) {
		t.Errorf("%s, %v", names(c.Certificates), err)
	}
}

// The chain must be for the usage as a whole.
func TestUsage(t *testing.T) {
	root, issuing, web := newAuthority(t, "Root"), newAuthority(t, "Issuing CA"), newAuthority(t, "web")
	clients := issuing.certify(t, root, day, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	sent, roots := certificates{web.certify(t, issuing, day, isLeaf), clients}, certificates{root.certify(t, root, day)}
	for usage, want := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageAny: true, x509.ExtKeyUsageClientAuth: true, x509.ExtKeyUsageServerAuth: false} {
		if _, err := chain.Verify(sent, roots, now, usage); (err == nil) != want {
			t.Errorf("usage %v: %v", usage, err)
		}
	}
}

// A CA chooses the names in descriptions, which go into logs and records.
func TestDescriptionsAreBounded(t *testing.T) {
	long := newAuthority(t, strings.Repeat("\n\x00é", 2000))
	c := long.certify(t, long, day, func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 150) })
	text := chain.Describe(c)
	if len(text) > 256 || strings.ContainsAny(text, "\n\x00") || !strings.HasPrefix(text, "the root ") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
	nameless := newAuthority(t, "")
	if got := chain.Describe(nameless.certify(t, long, day)); !strings.HasPrefix(got, `the intermediate "" (serial number `) {
		t.Error(got)
	}
}

// The number of certificates is bounded, because a CA or a pod decides about it, and each may
// cost the verification of signatures.
func TestManyCertificates(t *testing.T) {
	root, issuing, web := newAuthority(t, "Root"), newAuthority(t, "Issuing CA"), newAuthority(t, "web")
	roots, sent := certificates{root.certify(t, root, 100*day)}, certificates{web.certify(t, issuing, day, isLeaf)}
	for range chain.Max - 1 {
		sent = append(sent, issuing.certify(t, root, 90*day))
	}
	c, err := chain.Verify(sent, roots, now, x509.ExtKeyUsageAny)
	if err != nil || !slices.EqualFunc(c.Certificates, sent, (*x509.Certificate).Equal) {
		t.Errorf("a chain of %d certificates: %v", len(c.Certificates), err)
	}
	if c, err := chain.Verify(append(sent, sent[1]), roots, now, x509.ExtKeyUsageAny); err == nil {
		t.Errorf("a chain of %d certificates", len(c.Certificates))
	}
}
