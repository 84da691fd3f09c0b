//go:build e2e

package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"testing"

	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
)

// setAdditionalRoots makes the ConfigMap with the additional roots of the second issuer contain
// the root of another CA, and returns this root.
func setAdditionalRoots() (*x509.Certificate, error) {
	ca, err := minica.New()
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw})
	manifest, err := commandWith(text, "kubectl", "-n", plugin, "create", "configmap", "additional-roots", "--from-file=ca.crt=/dev/stdin", "--dry-run=client", "-o", "yaml")
	if err != nil {
		return nil, err
	}
	return ca.Root, applyText(manifest)
}

// additionalRoots checks that a changed ConfigMap with additional roots reaches the running
// pod: the volume of the second issuer with a certificate, and that with trust only. The root
// of the CA stays the first one.
func additionalRoots(t *testing.T, p pod) {
	t.Helper()
	out, err := p.exec("cat", "/etc/tls/ca.crt")
	must(t, err)
	own, err := pemutil.ParseCertificateBundle([]byte(out))
	must(t, err)
	added, err := setAdditionalRoots()
	must(t, err)
	eventually(t, patience, func() error {
		for _, path := range []string{"/etc/other/ca.crt", "/etc/trust/ca.crt"} {
			out, err := p.exec("cat", path)
			if err != nil {
				return err
			}
			roots, err := pemutil.ParseCertificateBundle(bytes.TrimSpace([]byte(out)))
			if err != nil {
				return err
			}
			if !slices.EqualFunc(roots, append(slices.Clip(own), added), (*x509.Certificate).Equal) {
				return fmt.Errorf("%s has %d roots, and not those of the CA with the additional one", path, len(roots))
			}
		}
		return nil
	})
	count, err := p.exec("sh", "-c", "ls /etc/trust/certs | wc -l")
	must(t, err)
	if want := fmt.Sprintln(len(own) + 1); count != want {
		t.Errorf("the directory of roots has %q files, want %q", count, want)
	}
}
