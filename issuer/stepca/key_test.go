package stepca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/embeddedca"
)

const keyPassword = "the password of the key"

// content returns a function for stepca.Config. The signer may overwrite what it returns.
func content(file []byte) func() ([]byte, error) {
	return func() ([]byte, error) { return slices.Clone(file), nil }
}

func value[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// provisionerOf returns a JWK provisioner whose private key is not kept at the CA.
func provisionerOf(t *testing.T, name, kid string, key crypto.Signer) *provisioner.JWK {
	t.Helper()
	return &provisioner.JWK{Type: "JWK", Name: name, Key: &jose.JSONWebKey{Key: key.Public(), KeyID: kid, Use: "sig"}}
}

func newECKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return value[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(curve, rand.Reader))
}

// jwkFile is the private key as a JWK, without a kid and an algorithm.
func jwkFile(t *testing.T, key any) []byte {
	t.Helper()
	return value[[]byte](t)(json.Marshal(jose.JSONWebKey{Key: key}))
}

// encryptFor encrypts with few rounds of PBKDF2, which are for the speed of tests only.
func encryptFor(t *testing.T, plain []byte, recipient jose.Recipient) *jose.JSONWebEncryption {
	t.Helper()
	encrypter := value[jose.Encrypter](t)(jose.NewEncrypter(jose.DefaultEncAlgorithm, recipient, nil))
	return value[*jose.JSONWebEncryption](t)(encrypter.Encrypt(plain))
}

func encrypt(t *testing.T, plain []byte, password string) *jose.JSONWebEncryption {
	t.Helper()
	return encryptFor(t, plain, jose.Recipient{Algorithm: jose.PBES2_HS256_A128KW, Key: []byte(password), PBES2Count: 1000})
}

func compact(t *testing.T, jwe *jose.JSONWebEncryption) string {
	t.Helper()
	return value[string](t)(jwe.CompactSerialize())
}

func pemFile(t *testing.T, key any, options ...pemutil.Options) []byte {
	t.Helper()
	return pem.EncodeToMemory(value[*pem.Block](t)(pemutil.Serialize(key, options...)))
}

func startCAWith(t *testing.T, others ...provisioner.Interface) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{Others: others})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Stop)
	return ca
}

// The private key of a provisioner that is not kept at the CA, in every form of a file.
func TestKeyFile(t *testing.T) {
	key := newECKey(t, elliptic.P256())
	plain := jwkFile(t, key)
	ca := startCAWith(t, provisionerOf(t, "offline", "chosen by the administrator", key))
	withPassword := pemutil.WithPassword([]byte(keyPassword))
	for name, test := range map[string]struct {
		file      []byte
		encrypted bool
	}{
		"JWK":                      {plain, false},
		"JWK with another kid":     {value[[]byte](t)(json.Marshal(jose.JSONWebKey{Key: key, KeyID: "another", Algorithm: "ES256", Use: "sig"})), false},
		"JWK of an editor":         {append([]byte("\ufeff\r\n"), append(plain, "\r\n"...)...), false},
		"JWE":                      {[]byte(compact(t, encrypt(t, plain, keyPassword)) + "\n"), true},
		"JWE in JSON":              {[]byte(encrypt(t, plain, keyPassword).FullSerialize()), true},
		"PEM, PKCS #8":             {pemFile(t, key, pemutil.WithPKCS8(true)), false},
		"PEM, SEC 1":               {pemFile(t, key), false},
		"PEM with EC PARAMETERS":   {append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), pemFile(t, key)...), false},
		"PEM, encrypted PKCS #8":   {pemFile(t, key, pemutil.WithPKCS8(true), withPassword), true},
		"PEM, encrypted SEC 1":     {pemFile(t, key, withPassword), true},
		"PEM, encrypted OpenSSH":   {pemFile(t, key, pemutil.WithOpenSSH(true), withPassword), true},
		"PEM, unencrypted OpenSSH": {pemFile(t, key, pemutil.WithOpenSSH(true)), false},
	} {
		t.Run(name, func(t *testing.T) {
			c := configFor(ca)
			c.Provisioner, c.Password, c.Key = "offline", nil, content(test.file)
			if test.encrypted {
				if err := newSigner(t, c).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "provisioner.keyFile (in the chart: keySecret): the file is encrypted: set provisioner.passwordFile (in the chart: passwordSecret)") {
					t.Errorf("without a password: %v", err)
				}
				c.Password = content([]byte("another password"))
				if err := newSigner(t, c).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "provisioner.keyFile (in the chart: keySecret): the password in provisioner.passwordFile (in the chart: passwordSecret) does not open the key") {
					t.Errorf("with another password: %v", err)
				}
			}
			c.Password = content([]byte(keyPassword + "\n"))
			if _, err := newSigner(t, c).Sign(t.Context(), signingRequest(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// The algorithm of the token follows from the key.
func TestKeyTypes(t *testing.T) {
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := value[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	keys := map[string]crypto.Signer{
		"P-256": newECKey(t, elliptic.P256()), "P-384": newECKey(t, elliptic.P384()), "P-521": newECKey(t, elliptic.P521()),
		"Ed25519": edwards, "RSA": rsaKey,
	}
	var others []provisioner.Interface
	for name, key := range keys {
		others = append(others, provisionerOf(t, name, name, key))
	}
	ca := startCAWith(t, others...)
	algorithms := tokenHeaders(ca)
	for name, want := range map[string]string{"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA", "RSA": "RS256"} {
		c := configFor(ca)
		c.Provisioner, c.Password = name, nil
		for form, file := range map[string][]byte{
			"JWK": jwkFile(t, keys[name]), "PEM": pemFile(t, keys[name], pemutil.WithPKCS8(true)),
		} {
			c.Key = content(file)
			_, err := newSigner(t, c).Sign(t.Context(), signingRequest(t))
			if header := <-algorithms; err != nil || header.Algorithm != want || header.KeyID != name {
				t.Errorf("%s of %s: the token has the algorithm %s and the kid %s: %v", form, name, header.Algorithm, header.KeyID, err)
			}
		}
	}
	c := configFor(ca)
	c.Provisioner, c.Password = "RSA", nil
	c.Key = content(value[[]byte](t)(json.Marshal(jose.JSONWebKey{Key: rsaKey, Algorithm: "PS384"})))
	if _, err := newSigner(t, c).Sign(t.Context(), signingRequest(t)); err != nil {
		t.Error(err)
	}
	if header := <-algorithms; header.Algorithm != "PS384" {
		t.Errorf("an RSA key with an algorithm: %s", header.Algorithm)
	}
}

// tokenHeaders returns the headers of the tokens that the CA receives.
func tokenHeaders(ca *embeddedca.CA) <-chan jose.Header {
	headers := make(chan jose.Header, 100)
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				var body api.SignRequest
				raw, err := io.ReadAll(r.Body)
				if err != nil {
					panic(err)
				}
				r.Body = io.NopCloser(bytes.NewReader(raw))
				if err := json.Unmarshal(raw, &body); err != nil {
					panic(err)
				}
				token, err := jose.ParseSigned(body.OTT)
				if err != nil {
					panic(err)
				}
				headers <- token.Headers[0]
			}
			next.ServeHTTP(w, r)
		})
	})
	return headers
}

// Every reason why a key file cannot be used has its own error.
func TestWrongKeyFile(t *testing.T) {
	key, another := newECKey(t, elliptic.P256()), newECKey(t, elliptic.P256())
	plain := jwkFile(t, key)
	var mixed, foreign map[string]string
	if err := errors.Join(json.Unmarshal(plain, &mixed), json.Unmarshal(jwkFile(t, another), &foreign)); err != nil {
		t.Fatal(err)
	}
	mixed["d"] = foreign["d"]
	ca := startCAWith(t, provisionerOf(t, "offline", "the kid", key))
	sum := func(key crypto.PublicKey) string {
		return value[string](t)(jose.Thumbprint(&jose.JSONWebKey{Key: key}))
	}
	p8 := value[*pem.Block](t)(pemutil.Serialize(key, pemutil.WithPKCS8(true), pemutil.WithPassword([]byte(keyPassword))))
	p8.Bytes = p8.Bytes[:len(p8.Bytes)-3]
	damaged := value[*pem.Block](t)(pemutil.Serialize(key, pemutil.WithPKCS8(true), pemutil.WithPassword([]byte(keyPassword))))
	damaged.Bytes = shortenCiphertext(t, damaged.Bytes)
	for name, test := range map[string]struct {
		file []byte
		want string
	}{
		"text":                 {[]byte("secret"), "the file is neither a JWK, nor an encrypted JWK (JWE), nor PEM"},
		"five parts":           {[]byte("a.b.c.d.e"), "the file is neither a JWK, nor an encrypted JWK (JWE), nor PEM"},
		"JSON":                 {[]byte(`{"d":"a"}`), "the file is not a JWK"},
		"JSON list":            {[]byte(`[1]`), "the file is not a JWK"},
		"JWE of something":     {[]byte(compact(t, encrypt(t, []byte("secret"), keyPassword))), "what it decrypts to is not a JWK"},
		"JWE of a public key":  {[]byte(compact(t, encrypt(t, jwkFile(t, key.Public()), keyPassword))), "holds a public key only"},
		"JWE, no password":     {[]byte(compact(t, encryptFor(t, plain, jose.Recipient{Algorithm: jose.ECDH_ES_A128KW, Key: key.Public()}))), `is encrypted with "ECDH-ES+A128KW", and not with a password`},
		"JWE, many rounds":     {[]byte(manyRounds(t, plain)), "has 1000001 rounds of PBKDF2"},
		"public JWK":           {jwkFile(t, key.Public()), "holds a public key only; the private key is needed"},
		"public PEM":           {pemFile(t, key.Public()), "holds a public key only; the private key is needed"},
		"certificate":          {ca.RootPEM(), "holds a public key only; the private key is needed"},
		"PEM of something":     {[]byte("-----BEGIN X-----\nAAAA\n-----END X-----\n"), "is PEM without a private key"},
		"two keys":             {append(pemFile(t, key), pemFile(t, another)...), "holds more than one private key"},
		"cut PEM":              {[]byte(strings.Replace(string(pemFile(t, key)), "\n-----END", "\nAAAA-----END", 1)), "is PEM without a private key"},
		"cut PKCS #8":          {pem.EncodeToMemory(p8), "cannot be decrypted"},
		"damaged PKCS #8":      {pem.EncodeToMemory(damaged), "is a damaged encrypted private key"},
		"symmetric":            {[]byte(`{"kty":"oct","k":"AAAA"}`), "is a symmetric key; use EC (P-256, P-384, P-521), Ed25519 or RSA"},
		"another curve":        {[]byte(`{"kty":"EC","crv":"secp256k1","x":"AAAA","y":"AAAA"}`), "is a JWK that cannot be used: unsupported elliptic curve"},
		"P-224":                {pemFile(t, newECKey(t, elliptic.P224()), pemutil.WithPKCS8(true)), "is a key on the curve P-224; use EC (P-256, P-384, P-521)"},
		"another kind":         {[]byte(`{"kty":"new"}`), "is a JWK that cannot be used"},
		"of no provisioner":    {jwkFile(t, another), "the key has the thumbprint " + sum(another.Public()) + `, which is not that of provisioner "offline" at the CA: ` + sum(key.Public()) + ` (kid "the kid")`},
		"private part of both": {value[[]byte](t)(json.Marshal(mixed)), "has a private part that does not belong to its public part"},
	} {
		t.Run(name, func(t *testing.T) {
			c := configFor(ca)
			c.Provisioner, c.Key, c.Password = "offline", content(test.file), content([]byte(keyPassword))
			err := newSigner(t, c).Connect(t.Context())
			if !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "defect") {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
	c := configFor(ca)
	c.Provisioner, c.Key = "offline", func() ([]byte, error) { return nil, errors.New("no such file") }
	if err := newSigner(t, c).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "read provisioner.keyFile (in the chart: keySecret): no such file") {
		t.Errorf("got %v", err)
	}
}

// shortenCiphertext removes one byte of the ciphertext of an EncryptedPrivateKeyInfo, so
// that it does not have the length of whole blocks.
func shortenCiphertext(t *testing.T, der []byte) []byte {
	t.Helper()
	var info struct {
		Algorithm  asn1.RawValue
		Ciphertext []byte
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		t.Fatal(err)
	}
	info.Ciphertext = info.Ciphertext[:len(info.Ciphertext)-1]
	return value[[]byte](t)(asn1.Marshal(info))
}

// manyRounds returns a JWE that says that it has more rounds of PBKDF2 than go-jose
// accepts.
func manyRounds(t *testing.T, plain []byte) string {
	t.Helper()
	return compact(t, encryptFor(t, plain, jose.Recipient{Algorithm: jose.PBES2_HS256_A128KW, Key: []byte(keyPassword), PBES2Count: 1_000_001}))
}

// Every reason why the encrypted key at the CA cannot be used has its own error.
func TestWrongKeyAtTheCA(t *testing.T) {
	ca := startCA(t)
	_, password := ca.Provisioner()
	key := newECKey(t, elliptic.P256())
	for name, test := range map[string]struct{ encrypted, want string }{
		"no JWE":              {"x", "is not an encrypted JWK (JWE)"},
		"a JWE of nothing":    {compact(t, encrypt(t, []byte("x"), password)), "what it decrypts to is not a JWK"},
		"another password":    {compact(t, encrypt(t, jwkFile(t, key), "another")), `the password does not open the key of provisioner "admin"`},
		"another key":         {compact(t, encrypt(t, jwkFile(t, key), password)), "and the public key beside it has"},
		"a symmetric key":     {compact(t, encrypt(t, []byte(`{"kty":"oct","k":"AAAA"}`), password)), "is a symmetric key"},
		"a public key":        {compact(t, encrypt(t, jwkFile(t, key.Public()), password)), "holds a public key only"},
		"not kept at the CA":  {"", " does not keep the private key of provisioner \"admin\""},
		"not kept, says what": {"", "set provisioner.keyFile (in the chart: keySecret) to a file with this key"},
	} {
		t.Run(name, func(t *testing.T) {
			listing(ca, func(provisioners []any) []any {
				provisioners[0].(map[string]any)["encryptedKey"] = test.encrypted
				return provisioners
			})
			defer ca.Intercept(nil)
			err := newSigner(t, configFor(ca)).Connect(t.Context())
			if !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			if name != "another password" && err != nil && strings.Contains(err.Error(), "does not open") {
				t.Errorf("the error blames the password: %v", err)
			}
		})
	}
}

// The kid of the token is that of the CA's list. The one in the encrypted key may be
// another, or missing.
func TestKeyIDOfTheList(t *testing.T) {
	key := newECKey(t, elliptic.P256())
	p := provisionerOf(t, "listed", "kid of the list", key)
	for name, inside := range map[string]string{"none inside": "", "another inside": "kid inside"} {
		p.EncryptedKey = compact(t, encrypt(t, value[[]byte](t)(json.Marshal(jose.JSONWebKey{Key: key, KeyID: inside})), keyPassword))
		ca := startCAWith(t, p)
		c := configFor(ca)
		c.Provisioner, c.Password = "listed", content([]byte(keyPassword))
		if _, err := newSigner(t, c).Sign(t.Context(), signingRequest(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Older versions of step-ca allow several provisioners with one name. The configured kid
// chooses.
func TestConfiguredKeyID(t *testing.T) {
	ca := startCA(t)
	name, password := ca.Provisioner()
	twin := provisionerOf(t, name, "twin", newECKey(t, elliptic.P256()))
	key := newECKey(t, elliptic.P256())
	twin.Key.Key, twin.EncryptedKey = key.Public(), compact(t, encrypt(t, jwkFile(t, key), password))
	var own string
	listing(ca, func(provisioners []any) []any {
		own = provisioners[0].(map[string]any)["key"].(map[string]any)["kid"].(string)
		return append([]any{twin}, provisioners...)
	})
	sign := func(kid string) error {
		c := configFor(ca)
		c.KeyID = kid
		_, err := newSigner(t, c).Sign(t.Context(), signingRequest(t))
		return err
	}
	if err := sign("missing"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`no JWK provisioner "admin" with the kid "missing"; those with this name have the kid "twin", %q`, own)) {
		t.Errorf("got %v", err)
	}
	if err := sign("twin"); !errors.Is(err, issuer.Denied) { // the CA does not know it
		t.Errorf("got %v", err)
	}
	if err := sign(own); err != nil {
		t.Error(err)
	}
}

// The error for a name that belongs to no JWK provisioner says what there is.
func TestProvisionerOfAnotherType(t *testing.T) {
	ca := startCA(t)
	for kind, want := range map[string]string{
		"ACME": "is of the type ACME, with which step-csi cannot sign", "OIDC": "type OIDC", "K8sSA": "type K8sSA", "SCEP": "type SCEP",
		"SSHPOP": "type SSHPOP", "Nebula": "type Nebula", "AWS": "(provisioner.type: jwk) or X5C (provisioner.type: x5c)",
		"X5C": "is of the type X5C, and provisioner.type is jwk: set provisioner.type to x5c",
	} {
		listing(ca, func(provisioners []any) []any {
			return append(provisioners, map[string]any{"type": kind, "name": "other"})
		})
		c := configFor(ca)
		c.Provisioner = "other"
		if err := newSigner(t, c).Connect(t.Context()); !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"other"`) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// The error for a name that no provisioner has lists the provisioners of all pages.
func TestNamesOfAllPages(t *testing.T) {
	var others []provisioner.Interface
	for i := range 130 {
		others = append(others, &provisioner.ACME{Type: "ACME", Name: fmt.Sprintf("acme-%03d", i)})
	}
	ca := startCAWith(t, others...)
	c := configFor(ca)
	if err := newSigner(t, c).Connect(t.Context()); err != nil {
		t.Error(err)
	}
	c.Provisioner = "missing"
	err := newSigner(t, c).Connect(t.Context())
	if err == nil || !strings.Contains(err.Error(), ` has no JWK provisioner "missing"; it has "acme-000" (ACME), "acme-001" (ACME)`) || !strings.Contains(err.Error(), "and 111 more") {
		t.Errorf("got %v", err)
	}
}

// A key file that is replaced together with the provisioner is read again, without a
// restart. If the file is late, the signer recovers when it arrives.
func TestReplacedKeyFile(t *testing.T) {
	key := newECKey(t, elliptic.P256())
	ca := startCAWith(t, provisionerOf(t, "offline", "first", key))
	file := jwkFile(t, key)
	c := configFor(ca)
	c.Provisioner, c.Password, c.Key = "offline", nil, func() ([]byte, error) { return slices.Clone(file), nil }
	s := newSigner(t, c)
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Fatal(err)
	}
	next := newECKey(t, elliptic.P384())
	if err := ca.SetOthers(provisionerOf(t, "offline", "second", next)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), signingRequest(t)); !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), "is not that of provisioner") {
		t.Errorf("with the old file: %v", err)
	}
	file = jwkFile(t, next)
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("with the new file: %v", err)
	}
	// The same key with another kid, as after the provisioner was created again.
	if err := ca.SetOthers(provisionerOf(t, "offline", "third", next)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("with another kid: %v", err)
	}
}
