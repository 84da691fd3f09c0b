package chain_test

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/flexstack/step-csi/issuer/chain"
)

// peers are the verifiers of peers, by name: whether a peer that knows only these roots
// accepts the chain as that of a server.
var peers = map[string]func(t *testing.T, chain, roots certificates) error{
	"Go": func(_ *testing.T, chain, roots certificates) error {
		pool, intermediates := x509.NewCertPool(), x509.NewCertPool()
		for _, root := range roots {
			pool.AddCert(root)
		}
		for _, c := range chain[1:] {
			intermediates.AddCert(c)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, DNSName: "web.shop"})
		return err
	},
	"OpenSSL": func(t *testing.T, chain, roots certificates) error {
		return run("openssl", "verify", "-purpose", "sslserver", "-no-CApath", "-no-CAstore",
			"-CAfile", file(t, roots), "-untrusted", file(t, chain[1:]), file(t, chain[:1]))
	},
	"GnuTLS": func(t *testing.T, chain, roots certificates) error {
		return run("certtool", "--verify", "--verify-hostname", "web.shop",
			"--load-ca-certificate", file(t, roots), "--infile", file(t, chain))
	},
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

func file(t *testing.T, certificates certificates) string {
	t.Helper()
	var data []byte
	for _, c := range certificates {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	path := filepath.Join(t.TempDir(), "certificates.pem")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// While a root is replaced, peers that know only the old root, only the new root or both accept
// the chain of a CA whose new root is also certified by the old one: OpenSSL, GnuTLS and Go.
//
// OpenSSL and GnuTLS do not do so if the intermediate has a certificate by each root instead:
// of two certificates of the same intermediate, they try only the first.
func TestPeers(t *testing.T) {
	p := newPKI(t)
	old, next, both := certificates{p.old_Old}, certificates{p.new_New}, certificates{p.new_New, p.old_Old}
	for name, test := range map[string]struct {
		sent    certificates
		rejects map[string]certificates // by verifier
	}{
		"the root is cross-signed":         {sent: certificates{p.leaf, p.issuing_New, p.new_Old}},
		"in another order":                 {sent: certificates{p.leaf, p.new_Old, p.issuing_New}},
		"with both roots":                  {sent: certificates{p.leaf, p.new_New, p.new_Old, p.old_Old, p.issuing_New}},
		"nothing is cross-signed":          {certificates{p.leaf, p.issuing_New}, map[string]certificates{"Go": old, "OpenSSL": old, "GnuTLS": old}},
		"the intermediate is cross-signed": {certificates{p.leaf, p.issuing_New, p.issuing_Old}, map[string]certificates{"OpenSSL": old, "GnuTLS": old}},
		"by the old root first":            {certificates{p.leaf, p.issuing_Old, p.issuing_New}, map[string]certificates{"OpenSSL": next, "GnuTLS": next}},
	} {
		c, err := chain.Verify(test.sent, both, now, x509.ExtKeyUsageAny)
		if err != nil {
			t.Fatal(err)
		}
		for program, verify := range peers {
			for known, roots := range map[string]certificates{"old": old, "new": next, "both": both, "another": {p.other_Other}} {
				want := known != "another" && !slices.EqualFunc(roots, test.rejects[program], (*x509.Certificate).Equal)
				if err := verify(t, c.Certificates, roots); (err == nil) != want {
					t.Errorf("%s, %s with the %s root: %v", name, program, known, err)
				}
			}
		}
	}
}
