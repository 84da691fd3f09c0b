package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
)

// issued writes a volume's files into a directory.
func issued(t *testing.T, ca *minica.CA, notAfter time.Time, usages ...x509.ExtKeyUsage) string {
	t.Helper()
	key, err := keyutil.GenerateDefaultSigner()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Sign(&x509.Certificate{
		DNSNames: []string{"web.shop.svc"}, PublicKey: key.Public(), ExtKeyUsage: usages,
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
		want      string // in the error; empty for none
	}{
		"good":    {directory: issued(t, ca, soon, both...)},
		"expired": {directory: issued(t, ca, time.Now().Add(-time.Minute), both...), want: "expired"},
		"no client": {directory: issued(t, ca, soon, x509.ExtKeyUsageServerAuth),
			want: "incompatible key usage"},
		"another root": {directory: issued(t, ca, soon, both...), want: "unknown authority",
			change: func(d string) { put(t, d, "ca.crt", encodeCertificate(other.Root)) }},
		"no root": {directory: issued(t, ca, soon, both...), want: "holds no certificate",
			change: func(d string) { put(t, d, "ca.crt", "") }},
		"another key": {directory: issued(t, ca, soon, both...), want: "private key does not match",
			change: func(d string) {
				key, err := keyutil.GenerateDefaultSigner()
				if err != nil {
					t.Fatal(err)
				}
				putKey(t, d, key)
			}},
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
				t.Errorf("%v, and it printed:\n%s", err, &out)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(out.String(), "verified ")):
				t.Errorf("%v, wanted something with %q; it printed:\n%s", err, test.want, &out)
			}
		})
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"verify"}, &out, &out); !errors.Is(err, errUsage) || !strings.Contains(out.String(), "name one directory") {
		t.Errorf("without a directory: %v\n%s", err, &out)
	}
}
