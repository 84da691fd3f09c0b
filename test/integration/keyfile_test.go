package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// provisionedBy gives the issuer other another provisioner, before the processes start.
func (two *twoIssuers) provisionedBy(provisioner string) {
	two.t.Helper()
	name, _ := two.other.Provisioner()
	text, err := os.ReadFile(two.config)
	node.Must(two.t, err)
	changed := strings.Replace(string(text), fmt.Sprintf("{type: jwk, name: %s, passwordFile: other-password}", name), provisioner, 1)
	if changed == string(text) {
		two.t.Fatalf("the configuration has another provisioner:\n%s", text)
	}
	node.Must(two.t, os.WriteFile(two.config, []byte(changed), 0o600))
}

// replace replaces a file beside the configuration like the kubelet: at once.
func (two *twoIssuers) replace(name string, content []byte) {
	two.t.Helper()
	path := filepath.Join(filepath.Dir(two.config), name)
	node.Must(two.t, os.WriteFile(path+".new", content, 0o600))
	node.Must(two.t, os.Rename(path+".new", path))
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	node.Must(t, err)
	return key
}

// The CA does not keep the provisioner's private key. The process reads it from a file,
// encrypted, and reads it again without a restart when provisioner and file are replaced.
func TestKeyOfFile(t *testing.T) {
	inBothModes(t, func(t *testing.T, two *twoIssuers) {
		replaceProvisioner := func(kid string) *ecdsa.PrivateKey {
			key := newECKey(t)
			node.Must(t, two.other.SetOthers(&provisioner.JWK{Type: "JWK", Name: "offline", Key: &jose.JSONWebKey{Key: key.Public(), KeyID: kid}}))
			return key
		}
		encrypted := func(key *ecdsa.PrivateKey) []byte {
			plain, err := json.Marshal(jose.JSONWebKey{Key: key})
			node.Must(t, err)
			// Fewer rounds of PBKDF2 than usual, so that a busy machine is fast enough.
			encrypter, err := jose.NewEncrypter(jose.DefaultEncAlgorithm, jose.Recipient{Algorithm: jose.PBES2_HS256_A128KW, Key: []byte("secret"), PBES2Count: 1000}, nil)
			node.Must(t, err)
			jwe, err := encrypter.Encrypt(plain)
			node.Must(t, err)
			return []byte(jwe.FullSerialize())
		}
		two.replace("other-password", []byte("secret\n"))
		two.replace("key", encrypted(replaceProvisioner("first")))
		two.provisionedBy("{type: jwk, name: offline, keyFile: key, passwordFile: other-password}")
		two.start()
		two.metric(`step_csi_issuer_ready{issuer="other"} 1`)
		two.eventuallyPublish(two.pod("b-0", "other"))

		key := replaceProvisioner("second")
		two.reports("which is not that of provisioner")
		expect(t, two.TryPublish(two.pod("b-1", "other")), codes.Unavailable, "provisioner.keyFile (in the chart: keySecret): the key has the thumbprint")
		two.Publish(two.pod("a-0", "default"))
		two.replace("key", encrypted(key))
		two.metric(`step_csi_issuer_ready{issuer="other"} 1`)
		two.eventuallyPublish(two.pod("b-1", "other"))
		for _, p := range []string{"a-0", "b-0", "b-1"} {
			two.Unpublish(node.Pod{Name: p})
		}
	})
}

// A certificate signs the tokens, and there is no password. Its files rotate while the
// process runs.
func TestX5CFilesRotate(t *testing.T) {
	inBothModes(t, func(t *testing.T, two *twoIssuers) {
		pki, err := minica.New(minica.WithName("Tokens"))
		node.Must(t, err)
		encode := func(certificates ...*x509.Certificate) (all []byte) {
			for _, c := range certificates {
				all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
			}
			return all
		}
		newPair := func(valid time.Duration) (certificate, key []byte, expires string) {
			private := newECKey(t)
			leaf, err := pki.Sign(&x509.Certificate{
				Subject: pkix.Name{CommonName: "step-csi"}, PublicKey: private.Public(),
				KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
				NotBefore: time.Now().Add(-4 * time.Hour), NotAfter: time.Now().Add(valid),
			})
			node.Must(t, err)
			block, err := pemutil.Serialize(private, pemutil.WithPKCS8(true))
			node.Must(t, err)
			expires = `step_csi_issuer_token_certificate_expiration_timestamp_seconds{issuer="other"} ` +
				strconv.FormatFloat(float64(leaf.NotAfter.Unix()), 'g', -1, 64)
			return encode(leaf, pki.Intermediate), pem.EncodeToMemory(block), expires
		}
		node.Must(t, two.other.SetOthers(&provisioner.X5C{Type: "X5C", Name: "tokens", Roots: encode(pki.Root)}))
		certificate, key, expires := newPair(10 * time.Hour)
		two.replace("tls.crt", certificate)
		two.replace("tls.key", key)
		two.provisionedBy("{type: x5c, name: tokens, certificateFile: tls.crt, privateKeyFile: tls.key}")
		node.Must(t, os.Remove(two.passwordFile))
		two.start()
		two.metric(expires)
		two.eventuallyPublish(two.pod("b-0", "other"))

		// Half of a rotation is reported, and the old pair signs on.
		certificate, key, expires = newPair(30 * time.Minute)
		two.replace("tls.crt", certificate)
		two.reports(`provisioner.privateKeyFile (in the chart: certificateSecret): the key is not that of the certificate "CN=step-csi"`)
		two.Publish(two.pod("b-1", "other"))

		// The new pair has less than a fifth of its lifetime left.
		two.replace("tls.key", key)
		two.metric(expires)
		two.metric(`step_csi_issuer_ready{issuer="other"} 1`)
		two.reports("warning: the certificate in provisioner.certificateFile (in the chart: certificateSecret) expires at")
		node.Eventually(t, time.Minute, "the warning in the log", func() bool { return two.checkedLog.Has(logs.TokenExpiring) })
		two.eventuallyPublish(two.pod("b-2", "other"))

		certificate, key, expires = newPair(12 * time.Hour)
		two.replace("tls.crt", certificate)
		two.replace("tls.key", key)
		two.metric(expires)
		two.eventuallyPublish(two.pod("b-3", "other"))
		for _, p := range []string{"b-0", "b-1", "b-2", "b-3"} {
			two.Unpublish(node.Pod{Name: p})
		}
	})
}

// fileSigner returns a signer whose configuration is completed by files.
func (a *atTheCA) fileSigner(files func(*stepca.Config)) *stepca.Signer {
	a.t.Helper()
	c := stepca.Config{URL: a.ca.URL(), Fingerprint: a.ca.Fingerprint(), Provisioner: "step-csi"}
	files(&c)
	signer, err := stepca.New(c)
	node.Must(a.t, err)
	a.t.Cleanup(signer.Close)
	return signer
}

// file returns a function that reads a file of the directory.
func (a *atTheCA) file(name string) func() ([]byte, error) {
	return func() ([]byte, error) { return os.ReadFile(filepath.Join(a.directory, name)) }
}

func contentOf(file []byte) func() ([]byte, error) {
	return func() ([]byte, error) { return slices.Clone(file), nil }
}

// signs has the signer sign, and checks that holders cannot renew the certificate.
func (a *atTheCA) signs(signer *stepca.Signer) {
	a.t.Helper()
	credential, err := newIssuer(a.t, signer).Issue(a.t.Context(), issuer.Applicant{}, issuer.Request{
		CommonName: names.Must(names.ParseCommonName("web.shop.svc")), DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "web.shop.svc")),
		Duration: time.Hour, KeyType: issuer.ECDSAP256,
	}, issuer.PrivateKey{})
	if err != nil {
		a.t.Error(err)
		return
	}
	if allowed, err := signer.HolderRenewal(a.t.Context(), 0); err != nil || allowed != "" {
		a.t.Errorf("holders can renew: %q, %v", allowed, err)
	}
	for path, status := range holderRenewals(a.t, a.ca, credential) {
		if status != http.StatusUnauthorized {
			a.t.Errorf("step-ca answers %s with %d", path, status)
		}
	}
}

// newAtTheCAWithTemplate has the template of docs/provisioner.md; test/chart compares both.
func newAtTheCAWithTemplate(t *testing.T) *atTheCA {
	t.Helper()
	a := newAtTheCA(t, startRealCA(t))
	template, err := os.ReadFile("../../deploy/step-ca/base/step-csi.tpl")
	node.Must(t, err)
	node.Must(t, os.WriteFile(filepath.Join(a.directory, "step-csi.tpl"), template, 0o600))
	return a
}

// The commands of docs/provisioner.md make a provisioner whose key step-ca does not keep,
// and a key file that step-csi reads, also in its other forms.
func TestRecommendedKeyFile(t *testing.T) {
	t.Parallel()
	a := newAtTheCAWithTemplate(t)
	a.run("Keep the key away from the CA")
	a.reload("step-csi")
	password := a.file("step-csi.password")
	a.signs(a.fileSigner(func(c *stepca.Config) { c.Key, c.Password = a.file("step-csi.key.json"), password }))

	secret, err := password()
	node.Must(t, err)
	key, err := jose.ReadKey(filepath.Join(a.directory, "step-csi.key.json"), jose.WithPassword(bytes.TrimSpace(secret)))
	node.Must(t, err)
	plain, err := json.Marshal(key)
	node.Must(t, err)
	pkcs8, err := pemutil.Serialize(key.Key, pemutil.WithPKCS8(true))
	node.Must(t, err)
	a.signs(a.fileSigner(func(c *stepca.Config) { c.Key = contentOf(plain) }))
	a.signs(a.fileSigner(func(c *stepca.Config) { c.Key = contentOf(pem.EncodeToMemory(pkcs8)) }))
	a.signs(a.fileSigner(func(c *stepca.Config) { c.Key, c.KeyID = contentOf(plain), key.KeyID }))

	// As OpenSSL writes it.
	node.Must(t, os.WriteFile(filepath.Join(a.directory, "plain.pem"), pem.EncodeToMemory(pkcs8), 0o600))
	openssl := exec.Command("openssl", "pkcs8", "-topk8", "-in", "plain.pem", "-out", "encrypted.pem", "-passout", "file:step-csi.password")
	openssl.Dir = a.directory
	if out, err := openssl.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	a.signs(a.fileSigner(func(c *stepca.Config) { c.Key, c.Password = a.file("encrypted.pem"), password }))

	err = a.fileSigner(func(c *stepca.Config) { c.Password = password }).Connect(t.Context())
	if err == nil || !strings.Contains(err.Error(), ` does not keep the private key of provisioner "step-csi"`) {
		t.Errorf("without the file: %v", err)
	}
}

// The commands of docs/provisioner.md make an X5C provisioner, and a certificate that
// step-csi signs tokens with.
func TestRecommendedX5C(t *testing.T) {
	t.Parallel()
	a := newAtTheCAWithTemplate(t)
	a.run("Without a password: X5C")
	a.reload("step-csi")
	signer := a.fileSigner(func(c *stepca.Config) { c.Certificate, c.PrivateKey = a.file("tls.crt"), a.file("tls.key") })
	a.signs(signer)

	// The next certificate of the same root.
	_, before := signer.TokenCertificate()
	step := exec.Command(filepath.Join(a.directory, "step"), "certificate", "create", "step-csi", "tls.crt", "tls.key", "--force",
		"--ca", "x5c-root.crt", "--ca-key", "x5c-root.key", "--not-after", "4000h", "--no-password", "--insecure")
	step.Dir, step.Env = a.directory, a.env
	if out, err := step.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	a.signs(signer) // and checks the claims, which reads the files
	if _, after := signer.TokenCertificate(); !after.After(before.Add(1000 * time.Hour)) {
		t.Errorf("the new certificate is not used: the old one expires at %s, the new one at %s", before, after)
	}
}
