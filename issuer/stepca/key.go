package stepca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/issuer/chartvalue"
)

// Why a private key cannot be used. The errors never contain a part of the key.
var (
	errNotJWE        = errors.New("is not an encrypted JWK (JWE)")
	errNotJWK        = errors.New("is not a JWK")
	errNotAKey       = errors.New("is neither a JWK, nor an encrypted JWK (JWE), nor PEM")
	errWrongPassword = errors.New("the password does not open it")
	errNoPassword    = errors.New("is encrypted: set " + chartvalue.Beside("provisioner.passwordFile") + " to a file with its password")
	errPublicKey     = errors.New("holds a public key only; the private key is needed")
)

// privateKey is the private key of a JWK provisioner.
type privateKey struct {
	jose.JSONWebKey
	thumbprint string // of the public key, by RFC 7638
	algorithm  jose.SignatureAlgorithm
	source     [sha256.Size]byte // what the key was read from
}

// source identifies what a key was read from, such as a file and a password.
func source(parts ...[]byte) [sha256.Size]byte {
	var all []byte
	for _, part := range parts {
		sum := sha256.Sum256(part)
		all = append(all, sum[:]...)
	}
	return sha256.Sum256(all)
}

// parseKeyFile reads a key file: a JWK, an encrypted JWK, or PEM. The password may be
// empty. It takes about 100 ms of CPU time if the key is encrypted.
func parseKeyFile(file, password []byte) (*privateKey, error) {
	text := bytes.TrimSpace(bytes.TrimPrefix(file, []byte("\ufeff"))) // editors of Windows write the mark
	switch {
	case bytes.Contains(text, []byte("-----BEGIN ")):
		key, err := parsePEM(text, password)
		if err != nil {
			return nil, err
		}
		return newPrivateKey(jose.JSONWebKey{Key: key})
	case isJWE(text):
		return decryptJWK(string(text), password)
	case json.Valid(text):
		return parseJWK(text)
	}
	return nil, errNotAKey
}

func isJWE(text []byte) bool {
	_, err := jose.ParseEncrypted(string(text))
	return err == nil
}

// maxIterations is the largest count of PBKDF2 rounds that go-jose accepts.
const maxIterations = 1_000_000

// decryptJWK decrypts a JWK that is encrypted with a password, as step-ca does.
func decryptJWK(encrypted string, password []byte) (*privateKey, error) {
	jwe, err := jose.ParseEncrypted(encrypted)
	if err != nil {
		return nil, errNotJWE
	}
	if algorithm := jwe.Header.Algorithm; algorithm != "" && !strings.HasPrefix(algorithm, "PBES2-") {
		return nil, fmt.Errorf("is encrypted with %.40q, and not with a password (such as PBES2-HS256+A128KW)", algorithm)
	}
	if rounds, ok := jwe.Header.ExtraHeaders["p2c"].(float64); ok && rounds > maxIterations {
		return nil, fmt.Errorf("has %.0f rounds of PBKDF2 (p2c); at most %d are supported", rounds, maxIterations)
	}
	if len(password) == 0 {
		return nil, errNoPassword
	}
	plain, err := jwe.Decrypt(password)
	if errors.Is(err, jose.ErrCryptoFailure) {
		return nil, errWrongPassword
	}
	if err != nil {
		return nil, fmt.Errorf("cannot be decrypted: %w", jose.TrimPrefix(err))
	}
	defer clear(plain)
	key, err := parseJWK(plain)
	if errors.Is(err, errNotJWK) {
		return nil, errors.New("is encrypted with this password, but what it decrypts to is not a JWK")
	}
	return key, err
}

func parseJWK(plain []byte) (*privateKey, error) {
	var kind struct {
		Type string `json:"kty"`
	}
	if err := json.Unmarshal(plain, &kind); err != nil || kind.Type == "" {
		return nil, errNotJWK
	}
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(plain, &jwk); err != nil {
		return nil, fmt.Errorf("is a JWK that cannot be used: %w", jose.TrimPrefix(err))
	}
	return newPrivateKey(jwk)
}

// parsePEM returns the only private key of the text. OpenSSL writes other blocks beside
// it, such as EC PARAMETERS.
func parsePEM(text, password []byte) (key any, err error) {
	var private *pem.Block
	var others []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case !strings.HasSuffix(block.Type, "PRIVATE KEY"):
			others = append(others, block.Type)
		case private != nil:
			return nil, errors.New("holds more than one private key")
		default:
			private = block
		}
	}
	switch {
	case private != nil:
	case slices.Contains(others, "PUBLIC KEY") || slices.Contains(others, "CERTIFICATE"):
		return nil, errPublicKey
	default:
		return nil, errors.New("is PEM without a private key")
	}
	encrypted := private.Type == "ENCRYPTED PRIVATE KEY" || private.Headers["Proc-Type"] == "4,ENCRYPTED"
	if encrypted {
		if private, err = decryptPEM(private, password); err != nil {
			return nil, err
		}
		defer clear(private.Bytes)
	}
	key, err = pemutil.Parse(pem.EncodeToMemory(private), pemutil.WithPassword(password))
	switch {
	case err == nil:
		return key, nil
	case encrypted, errors.Is(err, x509.IncorrectPasswordError):
		// The padding of a wrongly decrypted block can be right by chance.
		return nil, errWrongPassword
	case private.Type == "OPENSSH PRIVATE KEY" && len(password) == 0 && strings.Contains(err.Error(), "password protected"):
		return nil, errNoPassword
	}
	return nil, fmt.Errorf("cannot be parsed: %w", err)
}

// decryptPEM returns the plain block.
func decryptPEM(block *pem.Block, password []byte) (plain *pem.Block, err error) {
	if len(password) == 0 {
		return nil, errNoPassword
	}
	defer func() {
		if recover() != nil { // pemutil panics if the ciphertext has not the length of whole blocks
			plain, err = nil, errors.New("is a damaged encrypted private key")
		}
	}()
	der, err := pemutil.DecryptPEMBlock(block, password)
	if errors.Is(err, x509.IncorrectPasswordError) {
		return nil, errWrongPassword
	}
	if err != nil {
		return nil, fmt.Errorf("cannot be decrypted: %w; convert it with: openssl pkcs8 -topk8 -v2 aes-256-cbc", err)
	}
	return &pem.Block{Type: strings.TrimPrefix(block.Type, "ENCRYPTED "), Bytes: der}, nil
}

// newPrivateKey checks that the key can sign tokens, and chooses the algorithm.
func newPrivateKey(jwk jose.JSONWebKey) (*privateKey, error) {
	key := &privateKey{JSONWebKey: jwk}
	var err error
	if key.algorithm, err = algorithm(jwk); err != nil {
		return nil, err
	}
	if key.thumbprint, err = jose.Thumbprint(&jwk); err != nil {
		return nil, fmt.Errorf("is a key that cannot be used: %w", err)
	}
	return key, nil
}

const supportedKeys = "use EC (P-256, P-384, P-521), Ed25519 or RSA"

// algorithm returns the algorithm with which the private key signs tokens. Only for RSA,
// there is a choice.
func algorithm(jwk jose.JSONWebKey) (jose.SignatureAlgorithm, error) {
	switch key := jwk.Key.(type) {
	case *ecdsa.PrivateKey:
		switch key.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		case elliptic.P521():
			return jose.ES512, nil
		}
		return "", fmt.Errorf("is a key on the curve %s; %s", key.Curve.Params().Name, supportedKeys)
	case ed25519.PrivateKey:
		return jose.EdDSA, nil
	case *rsa.PrivateKey:
		switch jwk.Algorithm {
		case jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512:
			return jose.SignatureAlgorithm(jwk.Algorithm), nil
		}
		return jose.RS256, nil
	case *ecdsa.PublicKey, ed25519.PublicKey, *rsa.PublicKey:
		return "", errPublicKey
	case []byte:
		return "", errors.New("is a symmetric key; " + supportedKeys)
	}
	return "", fmt.Errorf("is a %T; %s", jwk.Key, supportedKeys)
}
