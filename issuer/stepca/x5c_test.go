package stepca_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/embeddedca"
)

// pair is a certificate with its intermediates, and its key, as files.
type pair struct{ certificate, key []byte }

// newPair returns a certificate of the PKI that may sign tokens, with what change changes.
func newPair(t *testing.T, pki *minica.CA, change func(*x509.Certificate)) pair {
	t.Helper()
	key := newECKey(t, elliptic.P256())
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "step-csi"}, PublicKey: key.Public(),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
	}
	if change != nil {
		change(template)
	}
	leaf := value[*x509.Certificate](t)(pki.Sign(template))
	return pair{append(pemOf(leaf), pemOf(pki.Intermediate)...), pemFile(t, key, pemutil.WithPKCS8(true))}
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func tokenPKI(t *testing.T) *minica.CA {
	t.Helper()
	return value[*minica.CA](t)(minica.New(minica.WithName("Tokens")))
}

const x5cName = "x5c ü/#?%"

// x5cProvisioner trusts the root of the PKI.
func x5cProvisioner(pki *minica.CA) *provisioner.X5C {
	return &provisioner.X5C{Type: "X5C", Name: x5cName, Roots: pemOf(pki.Root)}
}

func startX5C(t *testing.T, change func(*provisioner.X5C)) (*embeddedca.CA, *minica.CA) {
	t.Helper()
	pki := tokenPKI(t)
	p := x5cProvisioner(pki)
	if change != nil {
		change(p)
	}
	return startCAWith(t, p), pki
}

// x5cConfig reads the files each time they are needed.
func x5cConfig(ca *embeddedca.CA, files *pair) stepca.Config {
	c := configFor(ca)
	c.Provisioner, c.Password = x5cName, nil
	c.Certificate = func() ([]byte, error) { return slices.Clone(files.certificate), nil }
	c.PrivateKey = func() ([]byte, error) { return slices.Clone(files.key), nil }
	return c
}

// A certificate and its key are enough to have the CA sign, without any password.
func TestX5C(t *testing.T) {
	ca, pki := startX5C(t, nil)
	files := newPair(t, pki, nil)
	s := newSigner(t, x5cConfig(ca, &files))
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := newIssuer(t, s).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
	if err != nil {
		t.Fatal(err)
	}
	if lifetime := time.Until(got.Leaf().NotAfter); lifetime > time.Hour || lifetime < 50*time.Minute {
		t.Errorf("the lifetime is %s", lifetime)
	}
	// The CA accepts the token for the revocation, and then has no database.
	if err := s.Revoke(t.Context(), issuer.Revocation{Serial: "1234"}); !errors.Is(err, issuer.Unsupported) {
		t.Errorf("revoke: %v", err)
	}
	leaf := value[*x509.Certificate](t)(pemutil.ParseCertificate(files.certificate))
	if issued, expires := s.TokenCertificate(); !issued.Equal(leaf.NotBefore) || !expires.Equal(leaf.NotAfter) {
		t.Errorf("the certificate was issued at %s and expires at %s", issued, expires)
	}
}

func TestX5CHolderRenewal(t *testing.T) {
	yes := true
	ca, pki := startX5C(t, nil)
	files := newPair(t, pki, nil)
	s := newSigner(t, x5cConfig(ca, &files))
	for _, test := range []struct {
		claims *provisioner.Claims
		says   string
		status int
	}{
		{nil, "disable-renewal=true", http.StatusCreated},
		{&provisioner.Claims{DisableRenewal: &yes}, "", http.StatusUnauthorized},
	} {
		p := x5cProvisioner(pki)
		p.Claims = test.claims
		if err := ca.SetOthers(p); err != nil {
			t.Fatal(err)
		}
		allowed, err := s.HolderRenewal(t.Context(), 0)
		if err != nil || (allowed == "") != (test.says == "") || !strings.Contains(allowed, test.says) {
			t.Errorf("%q, %v", allowed, err)
		}
		credential, err := newIssuer(t, s).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
		if err != nil {
			t.Fatal(err)
		}
		if status := renew(t, ca, credential); status != test.status {
			t.Errorf("step-ca answers a renewal with %d", status)
		}
	}
}

// Everything that step-ca would reject with a mere 401 has an error of its own, and the
// CA gets no request to sign.
func TestWrongX5CFiles(t *testing.T) {
	ca, pki := startX5C(t, nil)
	other := tokenPKI(t)
	good, another := newPair(t, pki, nil), newPair(t, pki, nil)
	with := func(change func(*x509.Certificate)) pair { return newPair(t, pki, change) }
	leaf := value[*x509.Certificate](t)(pemutil.ParseCertificate(good.certificate))
	for name, test := range map[string]struct {
		files pair
		want  string
	}{
		"expired": {with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), `the certificate "CN=step-csi" expired at `},
		"not yet valid": {with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }),
			`the certificate "CN=step-csi" is not valid before `},
		"other key usage": {with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "does not have the key usage digitalSignature"},
		"no key usage":    {with(func(c *x509.Certificate) { c.KeyUsage = 0 }), "does not have the key usage digitalSignature"},
		"server only": {with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
			"has extended key usages without clientAuth"},
		"unknown usage": {with(func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
		}), "has extended key usages without clientAuth"},
		"another key": {pair{good.certificate, another.key}, `privateKeyFile (in the chart: certificateSecret): the key is not that of the certificate "CN=step-csi"`},
		"intermediate first": {pair{append(pemOf(pki.Intermediate), pemOf(leaf)...), good.key},
			`privateKeyFile (in the chart: certificateSecret): the key is not that of the certificate "CN=Tokens Intermediate CA"`},
		"no intermediate": {pair{pemOf(leaf), good.key},
			`does not lead to a root of the X5C provisioner "` + x5cName + `" ("CN=Tokens Root CA")`},
		"another root":           {newPair(t, other, nil), "add the missing intermediates to the file, or add this root to the provisioner"},
		"no certificate":         {pair{good.key, good.key}, "certificateFile (in the chart: certificateSecret): the file has no certificate in PEM"},
		"rubbish certificate":    {pair{[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), good.key}, "a certificate that cannot be parsed"},
		"certificate as key":     {pair{good.certificate, good.certificate}, "privateKeyFile (in the chart: certificateSecret): the file holds a public key only"},
		"encrypted key":          {pair{good.certificate, pemFile(t, newECKey(t, elliptic.P256()), pemutil.WithPKCS8(true), pemutil.WithPassword([]byte("x")))}, "privateKeyFile (in the chart: certificateSecret): the file is encrypted; the type x5c needs a key without a password"},
		"about to expire":        {with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Minute) }), "and step-ca signs no certificate that outlives it; renew it"},
		"not even a private key": {pair{good.certificate, []byte("x")}, "privateKeyFile (in the chart: certificateSecret): the file is neither"},
	} {
		t.Run(name, func(t *testing.T) {
			before := ca.Signs()
			s := newSigner(t, x5cConfig(ca, &test.files))
			if err := s.Connect(t.Context()); err == nil && name != "about to expire" {
				t.Error("Connect does not report it")
			}
			_, err := s.Sign(t.Context(), signingRequest(t))
			if !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "defect") {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			if ca.Signs() != before {
				t.Error("the CA received a request to sign")
			}
		})
	}
	c := x5cConfig(ca, &good)
	c.PrivateKey = func() ([]byte, error) { return nil, errors.New("no such file") }
	if err := newSigner(t, c).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "read provisioner.privateKeyFile (in the chart: certificateSecret): no such file") {
		t.Errorf("got %v", err)
	}
	c = x5cConfig(ca, &good)
	c.Provisioner = "admin"
	if err := newSigner(t, c).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "of the type JWK, and provisioner.type is x5c: set provisioner.type to jwk") {
		t.Errorf("got %v", err)
	}
	c.Provisioner = "missing"
	if err := newSigner(t, c).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), `no X5C provisioner "missing"; it has "admin" (JWK), "`+x5cName+`" (X5C)`) {
		t.Errorf("got %v", err)
	}
}

// A provisioner that trusts the CA's own root would let every pod sign tokens.
func TestX5CWithTheRootOfTheCA(t *testing.T) {
	ca, pki := startX5C(t, nil)
	p := x5cProvisioner(pki)
	p.Roots = append(p.Roots, ca.RootPEM()...)
	if err := ca.SetOthers(p); err != nil {
		t.Fatal(err)
	}
	files := newPair(t, pki, nil)
	if _, err := newSigner(t, x5cConfig(ca, &files)).Sign(t.Context(), signingRequest(t)); !errors.Is(err, issuer.Unavailable) ||
		!strings.Contains(err.Error(), `trusts "CN=Example Root CA", which is a root of the CA itself, so that the certificate of every pod can sign tokens`) {
		t.Errorf("got %v", err)
	}
}

// step-ca accepts what passes the checks: every kind of key usages, and a leaf directly
// below the root.
func TestUsualX5CFiles(t *testing.T) {
	ca, pki := startX5C(t, nil)
	below := &minica.CA{Root: pki.Root, Intermediate: pki.Root, Signer: pki.RootSigner}
	for name, files := range map[string]pair{
		"any usage":      newPair(t, pki, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		"no usage":       newPair(t, pki, func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
		"server, client": newPair(t, pki, func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }),
		"below the root": newPair(t, below, nil),
	} {
		if _, err := newSigner(t, x5cConfig(ca, &files)).Sign(t.Context(), signingRequest(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The files are read again when their content has changed: at the latest when the
// certificate is about to expire, when the CA rejects it, and when the issuer is checked.
func TestRotatedX5CFiles(t *testing.T) {
	ca, pki := startX5C(t, nil)
	expires := func(s *stepca.Signer) time.Duration {
		_, expires := s.TokenCertificate()
		return time.Until(expires).Round(time.Hour)
	}
	files := newPair(t, pki, nil)
	s := newSigner(t, x5cConfig(ca, &files))
	sign := func(what string) {
		t.Helper()
		if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	sign("the first certificate")

	files = newPair(t, pki, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(16 * time.Hour) })
	if _, err := s.HolderRenewal(t.Context(), 0); err != nil || expires(s) != 16*time.Hour {
		t.Errorf("the certificate is valid for %s: %v", expires(s), err)
	}
	sign("a certificate that was found by the check")

	// Half of a rotation: the signer goes on with the old pair, and reports it.
	old := files.key
	files = newPair(t, pki, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(20 * time.Hour) })
	late := files.key
	files.key = old
	if _, err := s.HolderRenewal(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "the key is not that of the certificate") {
		t.Errorf("half of a rotation: %v", err)
	}
	sign("half of a rotation")
	files.key = late
	if _, err := s.HolderRenewal(t.Context(), 0); err != nil || expires(s) != 20*time.Hour {
		t.Errorf("the certificate is valid for %s: %v", expires(s), err)
	}

	// The CA trusts another root.
	pki = tokenPKI(t)
	if err := ca.SetOthers(x5cProvisioner(pki)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), signingRequest(t)); !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), "does not lead to a root") {
		t.Errorf("the CA trusts another root: %v", err)
	}
	files = newPair(t, pki, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Minute) })
	if _, err := s.Sign(t.Context(), signingRequest(t)); !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), "outlives it") {
		t.Errorf("about to expire: %v", err)
	}
	files = newPair(t, pki, nil)
	sign("a new certificate instead of one that is about to expire")
}

// step-ca signs nothing that outlives the certificate that signs the token: pods get what
// is left, with a margin for clocks that differ.
func TestX5CLimitsTheLifetime(t *testing.T) {
	ca, pki := startX5C(t, nil)
	files := newPair(t, pki, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(30 * time.Minute) })
	got, err := newIssuer(t, newSigner(t, x5cConfig(ca, &files))).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
	if err != nil {
		t.Fatal(err)
	}
	if lifetime := got.Leaf().NotAfter.Sub(got.Asked); lifetime > 28*time.Minute || lifetime < 20*time.Minute {
		t.Errorf("the lifetime is %s", lifetime)
	}
}

// What is left may be less than the provisioner's shortest lifetime.
func TestX5CLeavesTooShortALifetime(t *testing.T) {
	ca, pki := startX5C(t, nil)
	files := newPair(t, pki, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(5 * time.Minute) })
	_, err := newSigner(t, x5cConfig(ca, &files)).Sign(t.Context(), signingRequest(t))
	if !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "less than the authorized minimum") ||
		!strings.Contains(err.Error(), "instead of 1h0m0s, because the certificate in provisioner.certificateFile (in the chart: certificateSecret) expires at ") {
		t.Errorf("got %v", err)
	}
}

// The certificate that ends first limits, also if it is an intermediate.
func TestX5CIntermediateExpiresFirst(t *testing.T) {
	ca, pki := startX5C(t, nil)
	key := newECKey(t, elliptic.P256())
	short := value[*x509.Certificate](t)((&minica.CA{Root: pki.Root, Intermediate: pki.Root, Signer: pki.RootSigner}).Sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "Short"}, PublicKey: key.Public(), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(40 * time.Minute),
	}))
	files := newPair(t, &minica.CA{Root: pki.Root, Intermediate: short, Signer: crypto.Signer(key)}, nil)
	s := newSigner(t, x5cConfig(ca, &files))
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, expires := s.TokenCertificate(); !expires.Equal(short.NotAfter) {
		t.Errorf("the chain expires at %s, want %s", expires, short.NotAfter)
	}
}
