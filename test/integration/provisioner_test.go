package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// atTheCA runs shell blocks of docs/provisioner.md and docs/subject.md, as at the CA.
type atTheCA struct {
	t         *testing.T
	ca        *realca.CA
	directory string
	env       []string
}

func newAtTheCA(t *testing.T, ca *realca.CA) *atTheCA {
	t.Helper()
	directory := t.TempDir()
	_, err := realca.BuildCLI(directory)
	node.Must(t, err)
	// `step ca init` writes this file below STEPPATH.
	path, root := filepath.Join(directory, "path"), filepath.Join(directory, "root_ca.crt")
	defaults, err := json.Marshal(map[string]string{"ca-url": ca.URL(), "ca-config": ca.ConfigFile(), "fingerprint": ca.Fingerprint(), "root": root})
	node.Must(t, err)
	node.Must(t, os.WriteFile(root, ca.RootPEM(), 0o600))
	node.Must(t, os.MkdirAll(filepath.Join(path, "config"), 0o700))
	node.Must(t, os.WriteFile(filepath.Join(path, "config", "defaults.json"), defaults, 0o600))
	return &atTheCA{t, ca, directory, append(os.Environ(),
		"PATH="+directory+":"+os.Getenv("PATH"), "HOME="+directory, "STEPPATH="+path)}
}

// run runs the first shell block below the heading of docs/provisioner.md.
func (a *atTheCA) run(heading string) {
	a.t.Helper()
	a.runOf("provisioner.md", heading)
}

// runOf runs the first shell block below the heading of a page.
func (a *atTheCA) runOf(name, heading string) {
	a.t.Helper()
	page, err := os.ReadFile("../../docs/" + name)
	node.Must(a.t, err)
	_, section, found := strings.Cut(string(page), "\n## "+heading+"\n")
	_, block, opened := strings.Cut(section, "```sh\n")
	block, _, closed := strings.Cut(block, "\n```")
	if !found || !opened || !closed {
		a.t.Fatalf("docs/%s has no shell block below %q", name, heading)
	}
	command := exec.Command("sh", "-euc", block)
	command.Dir, command.Env = a.directory, a.env
	if out, err := command.CombinedOutput(); err != nil {
		a.t.Fatalf("%s: %v\n%s", heading, err, out)
	}
}

// reload makes the CA load its configuration, and waits until the provisioner has the
// claim.
func (a *atTheCA) reload(provisioner string) {
	a.t.Helper()
	node.Must(a.t, a.ca.Reload(provisioner, func(entry map[string]any) bool {
		claims, _ := entry["claims"].(map[string]any)
		return claims["disableRenewal"] == true
	}))
}

// signer returns a signer that uses the provisioner.
func (a *atTheCA) signer(provisioner string, password []byte) *stepca.Signer {
	a.t.Helper()
	signer, err := stepca.New(stepca.Config{
		URL: a.ca.URL(), Fingerprint: a.ca.Fingerprint(), Provisioner: provisioner,
		Password: func() ([]byte, error) { return slices.Clone(password), nil },
	})
	node.Must(a.t, err)
	a.t.Cleanup(signer.Close)
	return signer
}

// The commands of docs/provisioner.md make a provisioner that signs what step-csi asks
// for, and whose certificates are no CA certificates, have no other names than the token,
// live no longer than the maximum, and cannot be renewed by their holders.
func TestRecommendedProvisioner(t *testing.T) {
	t.Parallel()
	ca := startRealCA(t)
	a := newAtTheCA(t, ca)
	a.run("Create the provisioner")
	a.reload("step-csi")
	password, err := os.ReadFile(filepath.Join(a.directory, "step-csi.password"))
	node.Must(t, err)
	signer := a.signer("step-csi", password)
	if allowed, err := signer.HolderRenewal(t.Context(), 0); err != nil || allowed != "" {
		t.Errorf("holders can renew: %q, %v", allowed, err)
	}

	request := issuer.Request{
		CommonName: names.Must(names.ParseCommonName("web.shop.svc")), DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "web.shop.svc")),
		URIs: names.Must(names.ParseAll(names.ParseURI, "spiffe://cluster.local/ns/shop/sa/web")), Duration: 24 * time.Hour, KeyType: issuer.ECDSAP256,
	}
	whole := newIssuer(t, signer)
	for _, keyType := range []issuer.KeyType{issuer.ECDSAP256, issuer.RSA2048} {
		request.KeyType = keyType
		credential, err := whole.Issue(t.Context(), issuer.Applicant{}, request, issuer.PrivateKey{})
		node.Must(t, err)
		for path, status := range holderRenewals(t, ca, credential) {
			if status != http.StatusUnauthorized {
				t.Errorf("step-ca answers %s with %d", path, status)
			}
		}
	}
	request.KeyType, request.Duration = issuer.ECDSAP256, 25*time.Hour
	if _, err := whole.Issue(t.Context(), issuer.Applicant{}, request, issuer.PrivateKey{}); !errors.Is(err, issuer.Denied) {
		t.Errorf("25 hours: %v", err)
	}
	request.Duration = time.Minute
	if _, err := whole.Issue(t.Context(), issuer.Applicant{}, request, issuer.PrivateKey{}); !errors.Is(err, issuer.Denied) {
		t.Errorf("a minute: %v", err)
	}

	request.Duration = time.Hour
	leaf := signGreedy(t, signer, request)
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.UnknownExtKeyUsage) > 0 ||
		!slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		t.Errorf("a CSR that asks for more gets a certificate with CA %t, key usage %b, extended key usages %v", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage)
	}

	// The CA's other provisioner, before and after the commands for an existing one.
	name, secret := ca.Provisioner()
	existing := a.signer(name, []byte(secret))
	if allowed, err := existing.HolderRenewal(t.Context(), 0); err != nil || !strings.Contains(allowed, "--disable-renewal=true") {
		t.Errorf("%q, %v", allowed, err)
	}
	before, err := newIssuer(t, existing).Issue(t.Context(), issuer.Applicant{}, request, issuer.PrivateKey{})
	node.Must(t, err)
	for path, status := range holderRenewals(t, ca, before) {
		if status != http.StatusCreated {
			t.Errorf("without the claim, step-ca answers %s with %d", path, status)
		}
	}
	a.run("Change an existing provisioner")
	a.reload(name)
	for path, status := range holderRenewals(t, ca, before) {
		if status != http.StatusUnauthorized {
			t.Errorf("step-ca answers %s with %d for a certificate from before the claim", path, status)
		}
	}
	if allowed, err := existing.HolderRenewal(t.Context(), 0); err != nil || allowed != "" {
		t.Errorf("after the commands for an existing provisioner: %q, %v", allowed, err)
	}
}

// newIssuer returns an issuer that allows all names.
func newIssuer(t *testing.T, signer issuer.Signer) *issuer.Issuer {
	t.Helper()
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	node.Must(t, err)
	return i
}

// holderRenewals asks the CA to renew the certificate, with the same and with another
// key, as a thief of the key would. It returns the status by path.
func holderRenewals(t *testing.T, ca rootedCA, c *issuer.Credential) map[string]int {
	t.Helper()
	pair := tls.Certificate{PrivateKey: c.Key.Signer}
	for _, certificate := range c.Chain {
		pair.Certificate = append(pair.Certificate, certificate.Raw)
	}
	key, err := issuer.ECDSAP256.Generate()
	node.Must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key.Signer)
	node.Must(t, err)
	rekey, err := json.Marshal(map[string]string{"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))})
	node.Must(t, err)
	statuses := map[string]int{}
	for path, body := range map[string][]byte{"/renew": nil, "/1.0/renew": nil, "/rekey": rekey, "/1.0/rekey": rekey} {
		answer, err := caClient(ca, pair).Post(ca.URL()+path, "application/json", bytes.NewReader(body))
		node.Must(t, err)
		answer.Body.Close()
		statuses[path] = answer.StatusCode
	}
	return statuses
}

// signGreedy has the CA sign a CSR that asks for a CA certificate.
func signGreedy(t *testing.T, signer *stepca.Signer, request issuer.Request) *x509.Certificate {
	t.Helper()
	var uris []*url.URL
	for _, uri := range request.URIs {
		uris = append(uris, uri.URL())
	}
	encode := func(value any) []byte {
		der, err := asn1.Marshal(value)
		node.Must(t, err)
		return der
	}
	key, err := issuer.ECDSAP256.Generate()
	node.Must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: request.CommonName.String()}, DNSNames: names.Texts(request.DNSNames), URIs: uris,
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: encode(struct{ IsCA bool }{true})},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: encode(asn1.BitString{Bytes: []byte{0xfe}, BitLength: 7})},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: encode([]asn1.ObjectIdentifier{{2, 5, 29, 37, 0}})},
		},
	}, key.Signer)
	node.Must(t, err)
	csr, err := x509.ParseCertificateRequest(der)
	node.Must(t, err)
	chain, err := signer.Sign(t.Context(), issuer.SigningRequest{Request: request, CSR: csr})
	node.Must(t, err)
	return chain[0]
}
