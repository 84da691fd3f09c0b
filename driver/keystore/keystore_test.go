package keystore_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	jks "github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/flexstack/step-csi/driver/keystore"
	"github.com/flexstack/step-csi/issuer"
)

// credential is a leaf's key and its chain, leaf first, with the root at the end.
type credential struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

func (c credential) roots() []*x509.Certificate { return c.chain[len(c.chain)-1:] }

var keyTypes = issuer.KeyTypes()

func newCredential(t testing.TB, keyType issuer.KeyType) credential {
	t.Helper()
	root, rootKey := newCertificate(t, issuer.ECDSAP256, "Root", nil, nil)
	intermediate, intermediateKey := newCertificate(t, issuer.ECDSAP256, "Intermediate", root, rootKey)
	leaf, key := newCertificate(t, keyType, "leaf", intermediate, intermediateKey)
	return credential{key, []*x509.Certificate{leaf, intermediate, root}}
}

// newCertificate returns a certificate, self-signed without a parent, with its key.
func newCertificate(t testing.TB, keyType issuer.KeyType, name string, parent *x509.Certificate, signer crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := keyType.Generate()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour).Truncate(time.Second), NotAfter: time.Now().Add(time.Hour),
		IsCA: name != "leaf", BasicConstraintsValid: true,
	}
	if parent == nil {
		parent, signer = template, key.Signer
	}
	der, err := x509.CreateCertificate(nil, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate, key.Signer
}

const password = "7%s changeit $PATH \"'"

func run(t *testing.T, name string, arguments ...string) string {
	t.Helper()
	command := exec.Command(name, arguments...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(arguments, " "), err, output, stderr.Bytes())
	}
	return string(output)
}

func save(t *testing.T, data []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "store")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func hash(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// Java loads stores of each kind with keys of each type, finds the key by its alias, and
// trusts the roots.
func TestJavaReadsAllStores(t *testing.T) {
	arguments := []string{filepath.Join("testdata", "ListKeyStores.java")}
	var want []string
	add := func(kind, path, entry string) {
		arguments = append(arguments, kind, path, password)
		want = append(want, path+" "+entry)
	}
	for _, keyType := range keyTypes {
		c := newCredential(t, keyType)
		der, err := x509.MarshalPKCS8PrivateKey(c.key)
		if err != nil {
			t.Fatal(err)
		}
		entry := "my alias key " + hash(der)
		for _, certificate := range c.chain {
			entry += " " + hash(certificate.Raw)
		}
		for _, profile := range []keystore.Profile{keystore.Modern, keystore.Legacy} {
			data, err := keystore.PKCS12(c.key, c.chain, "My alias", password, profile)
			add("PKCS12", save(t, data, err), entry)
		}
		data, err := keystore.JKS(c.key, c.chain, "My alias", password)
		add("JKS", save(t, data, err), entry)
	}
	root, _ := newCertificate(t, issuer.RSA2048, "Root", nil, nil)
	trusted := "ca-" + hash(root.Raw)[:16] + " trusted " + hash(root.Raw)
	for _, profile := range []keystore.Profile{keystore.Modern, keystore.Legacy} {
		data, err := keystore.PKCS12TrustStore([]*x509.Certificate{root}, password, profile)
		add("PKCS12", save(t, data, err), trusted)
	}
	data, err := keystore.JKSTrustStore([]*x509.Certificate{root}, password)
	add("JKS", save(t, data, err), trusted)

	got := strings.Split(strings.TrimSpace(run(t, "java", arguments...)), "\n")
	if !slices.Equal(got, want) {
		t.Errorf("Java lists\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Two roots with the same subject have different aliases. A root's alias does not depend on
// the other roots.
func TestRootsWithTheSameSubject(t *testing.T) {
	first, _ := newCertificate(t, issuer.ECDSAP256, "Root", nil, nil)
	second, _ := newCertificate(t, issuer.ECDSAP256, "Root", nil, nil)
	p12, err := keystore.PKCS12TrustStore([]*x509.Certificate{first, second}, password, keystore.Modern)
	p12Path := save(t, p12, err)
	java, err := keystore.JKSTrustStore([]*x509.Certificate{second, first}, password)
	javaPath := save(t, java, err)
	for _, path := range []string{p12Path, javaPath} {
		list := run(t, "keytool", "-list", "-keystore", path, "-storepass", password)
		for _, root := range []*x509.Certificate{first, second} {
			if !strings.Contains(list, "ca-"+hash(root.Raw)[:16]+",") {
				t.Errorf("no entry for the root in:\n%s", list)
			}
		}
		if strings.Count(list, "trustedCertEntry") != 2 {
			t.Errorf("not two trusted roots in:\n%s", list)
		}
	}
	again, err := keystore.JKSTrustStore([]*x509.Certificate{first, second}, password)
	if err != nil || !bytes.Equal(java, again) {
		t.Errorf("the same roots in another order gave another JKS; error %v", err)
	}
}

// The same contents give the same bytes. Another password, alias, chain or key gives others.
func TestSameBytes(t *testing.T) {
	c, other := newCredential(t, issuer.ECDSAP256), newCredential(t, issuer.ECDSAP256)
	for name, encode := range map[string]func(c credential, alias, password string) ([]byte, error){
		"PKCS#12": func(c credential, alias, password string) ([]byte, error) {
			return keystore.PKCS12(c.key, c.chain, alias, password, keystore.Modern)
		},
		"PKCS#12, legacy": func(c credential, alias, password string) ([]byte, error) {
			return keystore.PKCS12(c.key, c.chain, alias, password, keystore.Legacy)
		},
		"JKS": func(c credential, alias, password string) ([]byte, error) {
			return keystore.JKS(c.key, c.chain, alias, password)
		},
		"PKCS#12 trust store": func(c credential, alias, password string) ([]byte, error) {
			return keystore.PKCS12TrustStore(c.roots(), alias+password, keystore.Modern)
		},
		"JKS trust store": func(c credential, alias, password string) ([]byte, error) {
			return keystore.JKSTrustStore(c.roots(), alias+password)
		},
	} {
		var all [][]byte
		for _, variant := range []struct {
			credential
			alias, password string
		}{
			{c, "certificate", password},
			{c, "certificate", password},
			{c, "another", password},
			{c, "certificate", password + "x"},
			{other, "certificate", password},
		} {
			data, err := encode(variant.credential, variant.alias, variant.password)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, data)
		}
		if !bytes.Equal(all[0], all[1]) {
			t.Errorf("%s: the same contents gave other bytes", name)
		}
		for i, data := range all[2:] {
			if bytes.Equal(all[0], data) {
				t.Errorf("%s: other contents (%d) gave the same bytes", name, i)
			}
		}
	}
}

// No two keys are encrypted with the same salt.
func TestSaltsDiffer(t *testing.T) {
	salts := map[string]bool{}
	for range 3 {
		c := newCredential(t, issuer.ECDSAP256)
		for length := 1; length <= 3; length++ {
			data, err := keystore.JKS(c.key, c.chain[:length], "certificate", password)
			if err != nil {
				t.Fatal(err)
			}
			store := jks.New()
			if err := store.Load(bytes.NewReader(data), []byte(password)); err != nil {
				t.Fatal(err)
			}
			// The salt begins the encrypted key, which begins after the algorithm.
			at := bytes.Index(data, []byte{0x2a, 0x02, 0x11, 0x01, 0x01, 0x05, 0x00, 0x04}) + 10
			if at < 10 {
				t.Fatal("no encrypted key")
			}
			salts[string(data[at:at+20])] = true
		}
	}
	if len(salts) != 9 {
		t.Errorf("%d different salts in 9 stores", len(salts))
	}
}

// The profiles use the algorithms that docs/keystores.md lists.
func TestProfiles(t *testing.T) {
	c := newCredential(t, issuer.ECDSAP256)
	for profile, want := range map[keystore.Profile][]string{
		keystore.Modern: {"MAC: sha256, Iteration 2048", "PKCS7 Encrypted data: PBES2, PBKDF2, AES-256-CBC, Iteration 2048, PRF hmacWithSHA256",
			"Shrouded Keybag: PBES2, PBKDF2, AES-256-CBC, Iteration 2048, PRF hmacWithSHA256"},
		keystore.Legacy: {"MAC: sha1, Iteration 2048", "PKCS7 Encrypted data: pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 2048",
			"Shrouded Keybag: pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 2048"},
	} {
		data, err := keystore.PKCS12(c.key, c.chain, "certificate", password, profile)
		path := save(t, data, err)
		command := exec.Command("openssl", "pkcs12", "-info", "-noout", "-in", path, "-passin", "pass:"+password)
		info, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, info)
		}
		for _, line := range want {
			if !strings.Contains(string(info), line) {
				t.Errorf("%s: no %q in:\n%s", profile, line, info)
			}
		}
		info, err = exec.Command("certtool", "--p12-info", "--inder", "--infile", path, "--password", password).CombinedOutput()
		if err != nil || strings.Count(string(info), "BEGIN CERTIFICATE") != 3 || strings.Count(string(info), "PRIVATE KEY-----") != 2 ||
			!strings.Contains(string(info), "MAC: SHA"+map[keystore.Profile]string{keystore.Modern: "256", keystore.Legacy: "1"}[profile]) {
			t.Errorf("certtool: %v\n%s", err, info)
		}
	}
}

// OpenSSL exports the key and the chain, and shows the alias.
func TestOpenSSLExports(t *testing.T) {
	for _, keyType := range keyTypes {
		c := newCredential(t, keyType)
		data, err := keystore.PKCS12(c.key, c.chain, "My alias", password, keystore.Modern)
		text := run(t, "openssl", "pkcs12", "-in", save(t, data, err), "-passin", "pass:"+password, "-nodes")
		if !strings.Contains(text, "friendlyName: My alias") {
			t.Errorf("no alias in:\n%s", text)
		}
		var found []*x509.Certificate
		for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "PRIVATE KEY" {
				key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
				if err != nil || !key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(c.key) {
					t.Errorf("another key; error %v", err)
				}
				continue
			}
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, certificate)
		}
		if !slices.EqualFunc(found, c.chain, (*x509.Certificate).Equal) {
			t.Errorf("%s: %d certificates, and not the chain", keyType, len(found))
		}
	}
}

// A wrong password opens no store: the MAC covers the alias, too.
func TestWrongPassword(t *testing.T) {
	c := newCredential(t, issuer.ECDSAP256)
	store, err := keystore.PKCS12(c.key, c.chain, "certificate", password, keystore.Modern)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := pkcs12.DecodeChain(store, password); err != nil {
		t.Error(err)
	}
	if _, _, _, err := pkcs12.DecodeChain(store, password+"x"); err == nil {
		t.Error("PKCS#12 opens with a wrong password")
	}
	changed := bytes.Replace(store, []byte("\x00c\x00e\x00r\x00t"), []byte("\x00b\x00e\x00r\x00t"), 1)
	if _, _, _, err := pkcs12.DecodeChain(changed, password); err == nil || bytes.Equal(changed, store) {
		t.Error("PKCS#12 opens with another alias than the authenticated one")
	}
	java, err := keystore.JKS(c.key, c.chain, "certificate", password)
	if err != nil {
		t.Fatal(err)
	}
	if err := jks.New().Load(bytes.NewReader(java), []byte(password+"x")); err == nil {
		t.Error("JKS opens with a wrong password")
	}
}

// A pod's Secret can have any password. Those that one of the programs does not read are
// rejected, without showing them.
func TestCheckPassword(t *testing.T) {
	for wrong, want := range map[string]string{
		"":                              "it has 0 bytes; a key store's password has 6 to 128",
		"short":                         "it has 5 bytes; a key store's password has 6 to 128",
		strings.Repeat("long", 33):      "it has 132 bytes; a key store's password has 6 to 128",
		"changeit\n":                    "it ends with a newline; write it without one, such as by printf or echo -n",
		"pässword":                      "it has other characters than printable ASCII, which Java does not accept in a key store's password",
		"tab\tinside":                   "it has other characters than printable ASCII, which Java does not accept in a key store's password",
		"\xff\xfe\x00invalid":           "it has other characters than printable ASCII, which Java does not accept in a key store's password",
		"newline\ninside":               "it has other characters than printable ASCII, which Java does not accept in a key store's password",
		strings.Repeat("\U0001f511", 9): "it has other characters than printable ASCII, which Java does not accept in a key store's password",
	} {
		if err := keystore.CheckPassword(wrong); err == nil || err.Error() != want {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	for _, right := range []string{"123456", password, strings.Repeat("x", keystore.MaxPassword), keystore.GeneratePassword()} {
		if err := keystore.CheckPassword(right); err != nil {
			t.Errorf("%q: %v", right, err)
		}
	}
}

func TestGeneratedPasswords(t *testing.T) {
	first, second := keystore.GeneratePassword(), keystore.GeneratePassword()
	if len(first) != 32 || first == second || strings.Trim(first, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		t.Errorf("%q and %q are not two random passwords of 32 letters and digits", first, second)
	}
}

// All programs read a store with the shortest and the longest password.
func TestPasswordBounds(t *testing.T) {
	c := newCredential(t, issuer.ECDSAP256)
	for _, password := range []string{"123456", strings.Repeat("x", keystore.MaxPassword)} {
		for _, profile := range []keystore.Profile{keystore.Modern, keystore.Legacy} {
			data, err := keystore.PKCS12(c.key, c.chain, "certificate", password, profile)
			path := save(t, data, err)
			run(t, "openssl", "pkcs12", "-noout", "-in", path, "-passin", "pass:"+password)
			run(t, "certtool", "--p12-info", "--inder", "--infile", path, "--password", password)
			run(t, "keytool", "-list", "-v", "-keystore", path, "-storepass", password)
		}
		data, err := keystore.JKS(c.key, c.chain, "certificate", password)
		run(t, "keytool", "-list", "-v", "-keystore", save(t, data, err), "-storepass", password)
	}
}

func TestCheckAlias(t *testing.T) {
	for _, wrong := range []string{"", " a", "a ", "schlüssel", "a\nb", strings.Repeat("a", 65)} {
		if err := keystore.CheckAlias(wrong); err == nil || !strings.Contains(err.Error(), "is not an alias: use 1 to 64 printable ASCII characters") {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	for _, right := range []string{"a", "certificate", "my alias", strings.Repeat("a", 64)} {
		if err := keystore.CheckAlias(right); err != nil {
			t.Errorf("%q: %v", right, err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	c := newCredential(b, issuer.ECDSAP256)
	for name, encode := range map[string]func() ([]byte, error){
		"pkcs12-modern": func() ([]byte, error) {
			return keystore.PKCS12(c.key, c.chain, "certificate", password, keystore.Modern)
		},
		"pkcs12-legacy": func() ([]byte, error) {
			return keystore.PKCS12(c.key, c.chain, "certificate", password, keystore.Legacy)
		},
		"jks":                 func() ([]byte, error) { return keystore.JKS(c.key, c.chain, "certificate", password) },
		"pkcs12-trust-modern": func() ([]byte, error) { return keystore.PKCS12TrustStore(c.roots(), password, keystore.Modern) },
		"jks-trust":           func() ([]byte, error) { return keystore.JKSTrustStore(c.roots(), password) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := encode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
