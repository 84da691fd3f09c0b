package volume_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	spiffeBundle     = "cluster.local.spiffe-trust-bundle.pem"
	credentialBundle = "credential-bundle.private-key.pem"
)

// loadSPIFFE loads all files of the layout spiffe with go-spiffe, and returns the SVID and the
// number of roots in the trust domain's bundle, and in that of spiffe-helper.
func (f *fixture) loadSPIFFE() (svid *x509svid.SVID, own, all int) {
	f.t.Helper()
	file := func(name string) string { return filepath.Join(f.path, name) }
	domain := spiffeid.RequireTrustDomainFromString("cluster.local")
	helper, err := x509svid.Load(file("svid.pem"), file("svid_key.pem"))
	must(f.t, err)
	combined, err := os.ReadFile(file(credentialBundle))
	must(f.t, err)
	svid, err = x509svid.Parse(combined, combined)
	must(f.t, err)
	if svid.ID.String() != "spiffe://cluster.local/ns/shop/sa/web" || !svid.Certificates[0].Equal(helper.Certificates[0]) || len(svid.Certificates) != 2 {
		f.t.Errorf("%s with %d certificates", svid.ID, len(svid.Certificates))
	}
	var counts []int
	for _, name := range []string{spiffeBundle, "svid_bundle.pem"} {
		bundle, err := x509bundle.Load(domain, file(name))
		must(f.t, err)
		if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
			f.t.Errorf("with the roots of %s: %v", name, err)
		}
		counts = append(counts, len(bundle.X509Authorities()))
	}
	f.checkFormats()
	return svid, counts[0], counts[1]
}

// The files of the layout spiffe are those of the draft: the private key in PKCS#8 and the
// chain without its root, and nothing else between the PEM blocks.
func TestSPIFFELayout(t *testing.T) {
	f := newFixture(t)
	f.spec.Attributes = map[string]string{"layout": "spiffe"}
	v := f.create()
	first, _, _ := f.loadSPIFFE()
	data, err := os.ReadFile(filepath.Join(f.path, credentialBundle))
	must(t, err)
	var kinds []string
	for rest := data; len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || len(block.Headers) > 0 {
			t.Fatalf("%q is no PEM block without headers", rest)
		}
		kinds = append(kinds, block.Type)
		again := pem.EncodeToMemory(block)
		if !bytes.HasPrefix(data, again) {
			t.Error("there is something else between the PEM blocks")
		}
		data = data[len(again):]
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && bytes.Equal(c.RawIssuer, c.RawSubject) {
			t.Error("the chain has a root")
		}
	}
	if strings.Join(kinds, ",") != "PRIVATE KEY,CERTIFICATE,CERTIFICATE" {
		t.Errorf("the PEM blocks are %q", kinds)
	}

	must(t, v.Renew(t.Context()))
	second, _, _ := f.loadSPIFFE()
	if second.Certificates[0].Equal(first.Certificates[0]) {
		t.Error("the certificate is the one before the renewal")
	}
	f.addRoot()
	if changed, err := v.ReplaceRoots(); err != nil || !changed {
		t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
	}
	if third, own, all := f.loadSPIFFE(); !third.Certificates[0].Equal(second.Certificates[0]) || own != 2 || all != 2 {
		t.Errorf("%d and %d roots", own, all)
	}
	// A root becomes a federated one: it is no authority of the trust domain any more.
	roots := *f.signer.roots.Load()
	own, federated := roots[1:], roots[:1]
	f.signer.federated = federated
	f.signer.roots.Store(&own)
	f.follow()
	if changed, err := v.ReplaceRoots(); err != nil || !changed {
		t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
	}
	if _, own, all := f.loadSPIFFE(); own != 1 || all != 2 {
		t.Errorf("%d and %d roots with a federated one", own, all)
	}
	v.Stop()
	adopted, damaged := f.adopt()
	if damaged {
		t.Error("an intact volume counts as damaged after a restart")
	}
	if changed, err := adopted.ReplaceRoots(); err != nil || changed {
		t.Errorf("ReplaceRoots after a restart: changed %v, error %v", changed, err)
	}
}

// A trust bundle with another root than the CA's is damage.
func TestDamagedSPIFFEBundle(t *testing.T) {
	for name, damage := range map[string]func(root *os.Root) error{
		"another root": func(root *os.Root) error {
			other := newFixture(t).signer.ca.Root.Raw
			return root.WriteFile("..data/"+spiffeBundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other}), 0o600)
		},
		"no root": func(root *os.Root) error { return root.WriteFile("..data/"+spiffeBundle, nil, 0o600) },
		"no file": func(root *os.Root) error { return root.Remove("..data/" + spiffeBundle) },
	} {
		f := newFixture(t)
		f.spec.Attributes = map[string]string{"layout": "spiffe"}
		v := f.create()
		v.Stop()
		f.damage(damage)
		adopted, damaged := f.adopt()
		if !damaged {
			t.Errorf("%s: the damage is not found", name)
		}
		must(t, adopted.Renew(t.Context()))
		f.loadSPIFFE()
	}
}
