package payload_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"maps"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/keystore"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/test/keystores"
)

// newCredential returns a credential of a CA with an intermediate.
func newCredential(t testing.TB, keyType issuer.KeyType) *issuer.Credential {
	t.Helper()
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	other, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	key, err := keyType.Generate()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Sign(&x509.Certificate{
		PublicKey: key.Public(), DNSNames: []string{"web.shop.svc"}, NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &issuer.Credential{
		Key: key, Chain: []*x509.Certificate{leaf, ca.Intermediate},
		Roots: issuer.Roots{Own: []*x509.Certificate{other.Root, ca.Root}},
	}
}

var allFiles = attributes.Files{
	Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt",
	Bundle: "bundle.pem", CertificateDER: "tls.crt.der", PrivateKeyDER: "tls.key.der",
	PKCS12: "keystore.p12", PKCS12TrustStore: "truststore.p12", JKS: "keystore.jks", JKSTrustStore: "truststore.jks",
	KeyStorePassword: "keystore-password",
}

func password() payload.Password {
	return payload.PasswordOf(map[string]string{"keystore-password": "changeit"})
}

// encode writes all files of the credential, and returns the directory.
func encode(t *testing.T, c *issuer.Credential, a attributes.Attributes) *os.Root {
	t.Helper()
	a.PKCS12Profile, a.KeyStoreAlias = keystore.Modern, "certificate"
	all, err := payload.Encode(c, a, password())
	if err != nil {
		t.Fatal(err)
	}
	root := openRoot(t)
	if err := payload.Write(root, all, payload.AccessOf(a)); err != nil {
		t.Fatal(err)
	}
	return root
}

func read(t *testing.T, root *os.Root, name string) []byte {
	t.Helper()
	data, err := payload.ReadFile(root, name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func certificatesIn(t *testing.T, data []byte) []*x509.Certificate {
	t.Helper()
	certificates, err := pemutil.ParseCertificateBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	return certificates
}

func isKey(key any, of issuer.PrivateKey) bool {
	return of.Signer.(interface{ Equal(crypto.PrivateKey) bool }).Equal(key)
}

// Without an attribute about formats, a volume has the three files of the first release, byte
// for byte.
func TestUsualFiles(t *testing.T) {
	c := newCredential(t, issuer.ECDSAP256)
	a, err := attributes.Parse(nil, issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid-1", ServiceAccount: "web", Node: "node-1"}, "",
		attributes.Config{TrustDomain: names.Must(names.ParseTrustDomain("example.org")), Issuers: map[string]issuer.Lifetimes{"default": {}}})
	if err != nil {
		t.Fatal(err)
	}
	pemOf := func(kind string, ders ...[]byte) (all string) {
		for _, der := range ders {
			all += string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		}
		return all
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.Key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	roots := c.Roots.All()
	want := map[string]string{
		"tls.crt": pemOf("CERTIFICATE", c.Chain[0].Raw, c.Chain[1].Raw),
		"tls.key": pemOf("PRIVATE KEY", key),
		"ca.crt":  pemOf("CERTIFICATE", roots[0].Raw, roots[1].Raw),
	}
	root := encode(t, c, a)
	if got := visible(t, root); !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	set, err := root.Readlink(payload.DataLink)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := fs.ReadDir(root.FS(), set)
	if err != nil || len(entries) != 3 {
		t.Errorf("the set has %d files; %v", len(entries), err)
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err != nil || info.Mode() != 0o444 {
			t.Errorf("%s: %v, %v", entry.Name(), info.Mode(), err)
		}
	}
}

// The chain is as long as the pod wants in each file that contains the leaf, and the bundle
// begins with the key.
func TestChainLength(t *testing.T) {
	c := newCredential(t, issuer.ECDSAP256)
	for length, want := range map[attributes.ChainLength][]*x509.Certificate{
		attributes.LeafOnly:  c.Chain[:1],
		attributes.FullChain: c.Chain,
		attributes.WithRoot:  {c.Chain[0], c.Chain[1], c.Roots.Own[1]},
	} {
		root := encode(t, c, attributes.Attributes{Files: allFiles, Chain: length, KeyEncoding: attributes.PKCS8, Mode: 0o444, PrivateKeyMode: 0o400})
		if got := certificatesIn(t, read(t, root, "tls.crt")); !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
			t.Errorf("chain %s: %d certificates", length, len(got))
		}
		block, rest := pem.Decode(read(t, root, "bundle.pem"))
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil || !isKey(key, c.Key) {
			t.Errorf("chain %s: the bundle begins with another key; %v", length, err)
		}
		if got := certificatesIn(t, rest); !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
			t.Errorf("chain %s: %d certificates in the bundle", length, len(got))
		}
		if got := read(t, root, "tls.crt.der"); !bytes.Equal(got, c.Leaf().Raw) {
			t.Errorf("chain %s: the DER file has another certificate", length)
		}
		if err := keystores.Check(root, allFiles, "certificate", "changeit"); err != nil {
			t.Errorf("chain %s: %v", length, err)
		}
		if !slices.Equal(slices.Sorted(slices.Values(allFiles.All())), visibleNames(t, root)) {
			t.Errorf("chain %s: the volume has the names %q", length, visibleNames(t, root))
		}
	}
	// The credential is unchanged, although the caller overwrites the files.
	all, err := payload.Encode(c, attributes.Attributes{Files: allFiles, Chain: attributes.FullChain, KeyEncoding: attributes.PKCS8}, password())
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		clear(file.Data)
	}
	if _, err := x509.ParseCertificate(c.Leaf().Raw); err != nil {
		t.Error(err)
	}
}

// visibleNames returns the sorted names that programs see.
func visibleNames(t *testing.T, root *os.Root) (all []string) {
	t.Helper()
	for name := range visible(t, root) {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// The key is encoded alike in PEM, in the bundle and in DER.
func TestKeyEncodings(t *testing.T) {
	for _, test := range []struct {
		keyType  issuer.KeyType
		encoding attributes.KeyEncoding
		kind     string
		parse    func([]byte) (any, error)
	}{
		{issuer.ECDSAP256, attributes.PKCS8, "PRIVATE KEY", x509.ParsePKCS8PrivateKey},
		{issuer.Ed25519, attributes.PKCS8, "PRIVATE KEY", x509.ParsePKCS8PrivateKey},
		{issuer.RSA2048, attributes.PKCS8, "PRIVATE KEY", x509.ParsePKCS8PrivateKey},
		{issuer.RSA2048, attributes.PKCS1, "RSA PRIVATE KEY", func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) }},
		{issuer.ECDSAP384, attributes.SEC1, "EC PRIVATE KEY", func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) }},
	} {
		c := newCredential(t, test.keyType)
		root := encode(t, c, attributes.Attributes{Files: allFiles, Chain: attributes.FullChain, KeyEncoding: test.encoding, Mode: 0o444, PrivateKeyMode: 0o400})
		for _, name := range []string{"tls.key", "bundle.pem"} {
			block, _ := pem.Decode(read(t, root, name))
			key, err := test.parse(block.Bytes)
			if err != nil || block.Type != test.kind || !isKey(key, c.Key) {
				t.Errorf("%s in %s: %s has the type %s; %v", test.keyType, test.encoding, name, block.Type, err)
			}
		}
		if key, err := test.parse(read(t, root, "tls.key.der")); err != nil || !isKey(key, c.Key) {
			t.Errorf("%s in %s: the DER file: %v", test.keyType, test.encoding, err)
		}
		set, err := payload.OpenSet(root)
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		if err := payload.CheckCopies(set, allFiles, c.Leaf(), c.Key); err != nil {
			t.Error(err)
		}
		other := newCredential(t, test.keyType)
		for _, copied := range []attributes.Files{{Bundle: "bundle.pem"}, {CertificateDER: "tls.crt.der"}, {PrivateKeyDER: "tls.key.der"}} {
			if payload.CheckCopies(set, copied, other.Leaf(), other.Key) == nil {
				t.Errorf("%s in %s: %+v match another credential", test.keyType, test.encoding, copied)
			}
		}
	}
}

// Each file has the owner and the mode of its kind.
func TestOwnerAndModes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run this test as root: make test")
	}
	group := 3000
	c := newCredential(t, issuer.ECDSAP256)
	root := encode(t, c, attributes.Attributes{
		Files: allFiles, Chain: attributes.FullChain, KeyEncoding: attributes.PKCS8,
		Owner: 999, Group: &group, Mode: 0o444, PrivateKeyMode: 0o600,
	})
	secret := []string{"tls.key", "bundle.pem", "tls.key.der", "keystore.p12", "keystore.jks", "keystore-password"}
	for _, name := range allFiles.All() {
		info, err := root.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		want := fs.FileMode(0o444)
		if slices.Contains(secret, name) {
			want = 0o600
		}
		if owner := info.Sys().(*syscall.Stat_t); info.Mode() != want || owner.Uid != 999 || owner.Gid != 3000 {
			t.Errorf("%s: %v, %d:%d", name, info.Mode(), owner.Uid, owner.Gid)
		}
	}
}

// New roots replace the files of the trust, and keep all others with their modes.
func TestReplaceTrust(t *testing.T) {
	c, other := newCredential(t, issuer.ECDSAP256), newCredential(t, issuer.ECDSAP256)
	a := attributes.Attributes{Files: allFiles, Chain: attributes.LeafOnly, KeyEncoding: attributes.PKCS8, Mode: 0o444, PrivateKeyMode: 0o400}
	root := encode(t, c, a)
	before := visible(t, root)
	a.PKCS12Profile = keystore.Modern
	files, err := payload.EncodeTrust(other.Roots, a, password())
	if err != nil {
		t.Fatal(err)
	}
	if err := payload.Replace(root, files, a); err != nil {
		t.Fatal(err)
	}
	after := visible(t, root)
	for name := range before {
		if changed := before[name] != after[name]; changed != slices.Contains([]string{"ca.crt", "truststore.p12", "truststore.jks"}, name) {
			t.Errorf("%s: changed is %t", name, changed)
		}
	}
	if got := certificatesIn(t, read(t, root, payload.DataLink+"/"+payload.FullChain)); len(got) != 2 {
		t.Errorf("%d certificates in the full chain", len(got))
	}
	if info, err := root.Stat("bundle.pem"); err != nil || info.Mode() != 0o400 {
		t.Errorf("bundle.pem: %v, %v", info.Mode(), err)
	}
}
