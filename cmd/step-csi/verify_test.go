package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
)

// issued writes the files of a volume into a directory.
func issued(t *testing.T, ca *minica.CA, notAfter time.Time, usages ...x509.ExtKeyUsage) string {
	t.Helper()
	key, err := keyutil.GenerateDefaultSigner()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "web", Organization: []string{"shop"}, OrganizationalUnit: []string{"Web\u001b[2J"}}, DNSNames: []string{"web.shop", "web.shop.svc"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 7)}, URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/web"}},
		EmailAddresses: []string{"web@example.com"},
		PublicKey:      key.Public(), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages,
		NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter,
	})
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	put(t, directory, "tls.crt", encodeCertificate(leaf)+encodeCertificate(ca.Intermediate))
	put(t, directory, "ca.crt", encodeCertificate(ca.Root))
	putKey(t, directory, key)
	return directory
}

func encodeCertificate(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func put(t *testing.T, directory, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(directory, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, directory, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(directory, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func putKey(t *testing.T, directory string, key crypto.Signer) {
	t.Helper()
	block, err := pemutil.Serialize(key, pemutil.WithPKCS8(true))
	if err != nil {
		t.Fatal(err)
	}
	put(t, directory, "tls.key", string(pem.EncodeToMemory(block)))
}

func TestVerify(t *testing.T) {
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	other, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	soon := time.Now().Add(30 * time.Minute)
	for name, test := range map[string]struct {
		directory string
		change    func(directory string)
		want      string // a part of the error; empty for none
	}{
		"good":    {directory: issued(t, ca, soon, both...)},
		"expired": {directory: issued(t, ca, time.Now().Add(-time.Minute), both...), want: "expired"},
		"no client": {directory: issued(t, ca, soon, x509.ExtKeyUsageServerAuth),
			want: "incompatible key usage"},
		"another root": {directory: issued(t, ca, soon, both...), want: "unknown authority",
			change: func(d string) { put(t, d, "ca.crt", encodeCertificate(other.Root)) }},
		"no root": {directory: issued(t, ca, soon, both...), want: "ca.crt: the file contains no certificate",
			change: func(d string) { put(t, d, "ca.crt", "") }},
		"another key": {directory: issued(t, ca, soon, both...), want: "tls.key is the key of another certificate",
			change: func(d string) {
				key, err := keyutil.GenerateDefaultSigner()
				if err != nil {
					t.Fatal(err)
				}
				putKey(t, d, key)
			}},
		"no certificate": {directory: issued(t, ca, soon, both...), want: "tls.crt: ",
			change: func(d string) { put(t, d, "tls.crt", "x") }},
		"no intermediate": {directory: issued(t, ca, soon, both...), want: "unknown authority",
			change: func(d string) {
				leaf, _, _ := strings.Cut(read(t, d, "tls.crt"), "-----END CERTIFICATE-----\n")
				put(t, d, "tls.crt", leaf+"-----END CERTIFICATE-----\n")
			}},
		"not yet": {directory: issued(t, ca, time.Now().Add(2*time.Hour), both...), want: "not yet valid"},
		"no key": {directory: issued(t, ca, soon, both...), want: "tls.key",
			change: func(d string) { os.Remove(filepath.Join(d, "tls.key")) }},
	} {
		t.Run(name, func(t *testing.T) {
			if test.change != nil {
				test.change(test.directory)
			}
			var out bytes.Buffer
			err := run(t.Context(), []string{"verify", test.directory}, &out, &out)
			switch {
			case test.want == "" && (err != nil || !strings.Contains(out.String(), "web.shop.svc") || !strings.Contains(out.String(), "verified ")):
				t.Errorf("error %v; output:\n%s", err, &out)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(out.String(), "verified ")):
				t.Errorf("got %v, want an error with %q; output:\n%s", err, test.want, &out)
			}
		})
	}
}

// Verify accepts other file names. The test checks every line of the output.
func TestVerifyPrints(t *testing.T) {
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	directory := issued(t, ca, time.Now().Add(time.Hour-time.Second), x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	for from, to := range map[string]string{"tls.crt": "cert", "tls.key": "key", "ca.crt": "roots"} {
		if err := os.Rename(filepath.Join(directory, from), filepath.Join(directory, to)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	args := []string{"verify", "--certificate-file=cert", "--privatekey-file=key", "--ca-file=roots", directory}
	if err := run(t.Context(), args, &out, &out); err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`^common name   web
subject       CN=web,OU=Web \[2J,O=shop
DNS names     web\.shop
              web\.shop\.svc
IP addresses  10\.0\.0\.7
URIs          spiffe://cluster\.local/ns/shop/sa/web
e-mail        web@example\.com
X\.509-SVID    spiffe://cluster\.local/ns/shop/sa/web
serial        \d+
issuer        MiniCA Intermediate CA
not before    \S+Z
not after     \S+Z, another 59m[45]\ds
key file      /\S+/key, mode 0600
verified      the key is the certificate's, and the chain ends at a root of /\S+/roots
$`)
	if !want.Match(out.Bytes()) {
		t.Errorf("output:\n%s\nwant:\n%s", &out, want)
	}
}

func TestVerifyUsage(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"verify"}, &out, &out); !errors.Is(err, errUsage) || !strings.Contains(out.String(), "name one directory") {
		t.Errorf("without a directory: %v\n%s", err, &out)
	}
}

// Verify verifies the whole chain, and names the certificate of the CA that limits the leaf.
func TestVerifyTheChain(t *testing.T) {
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		valid               time.Duration // of the intermediate
		printed, notPrinted string
		wanted              string // a part of the error; empty for none
	}{
		"longer than the leaf": {2 * time.Hour, "verified ", "limited to", ""},
		"shorter":              {10*time.Minute - time.Second, "verified ", "expired", ""},
		"expired":              {-time.Minute, "expired since 1m", "verified ", `the intermediate "MiniCA Intermediate CA"`},
	} {
		t.Run(name, func(t *testing.T) {
			next := *ca
			template := *ca.Intermediate
			template.NotBefore, template.NotAfter, template.SerialNumber = time.Now().Add(-time.Hour), time.Now().Add(test.valid).Truncate(time.Second), nil
			der, err := x509.CreateCertificate(rand.Reader, &template, ca.Root, template.PublicKey, ca.RootSigner)
			if err != nil {
				t.Fatal(err)
			}
			if next.Intermediate, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
			directory := issued(t, &next, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
			var out bytes.Buffer
			err = run(t.Context(), []string{"verify", directory}, &out, &out)
			if test.wanted == "" && err != nil || test.wanted != "" && (err == nil || !strings.Contains(err.Error(), test.wanted) ||
				!strings.Contains(err.Error(), "(serial number "+next.Intermediate.SerialNumber.String()+") expired at ")) {
				t.Errorf("got %v", err)
			}
			if !strings.Contains(out.String(), test.printed) || strings.Contains(out.String(), test.notPrinted) {
				t.Errorf("output:\n%s", &out)
			}
			limited := regexp.MustCompile(`(?m)^limited to    \S+Z, another 9m[0-5]?\ds\n              by the intermediate "MiniCA Intermediate CA" \(serial number \d+\)$`)
			if limited.Match(out.Bytes()) != (name == "shorter") {
				t.Errorf("output:\n%s", &out)
			}
		})
	}
}

// A copy of a volume with trust only is verified with --trust-only. Without it, the error names
// the flag.
func TestVerifyTrustOnly(t *testing.T) {
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	put(t, directory, "roots.pem", encodeCertificate(ca.Root))
	verifyFiles := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := verify(append(args, "--ca-file=roots.pem", directory), &out, &out)
		return out.String(), err
	}
	out, err := verifyFiles("--trust-only")
	sum := sha256.Sum256(ca.Root.Raw)
	for _, want := range []string{"root          CN=MiniCA Root CA\n", "SHA-256 " + hex.EncodeToString(sum[:]) + "; not after ", "verified      1 root in " + directory + "/roots.pem\n"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v\n%s\nwant %s", err, out, want)
		}
	}
	if _, err := verifyFiles(); err == nil || !strings.HasSuffix(err.Error(), "; if the volume has only roots, add --trust-only") {
		t.Errorf("without the flag: %v", err)
	}
	if _, err := verifyFiles("--trust-only", "--ca-directory=certs"); err == nil || !strings.Contains(err.Error(), "certs: no such file") {
		t.Errorf("without the directory: %v", err)
	}
	put(t, directory, "roots.pem", "")
	if _, err := verifyFiles("--trust-only"); err == nil || !strings.Contains(err.Error(), "roots.pem: the file contains no certificate") {
		t.Errorf("an empty file: %v", err)
	}
}
