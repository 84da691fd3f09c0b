package stepca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/ca"
	"go.step.sm/crypto/jose"
)

// tokenLifetime allows for clocks that differ and for a busy CA.
const tokenLifetime = 5 * time.Minute

// provisionerKey mints one-time tokens of a JWK provisioner.
type provisionerKey struct {
	provisioner string
	encrypted   string // as the CA publishes it; differs if the key was replaced
	password    [sha256.Size]byte
	signer      jose.Signer
}

// provisionerKey returns the provisioner's key. It fetches the key if there is none, or
// if the CA rejected that key. If neither the key at the CA nor the password has
// changed, it returns the rejected key.
func (s *Signer) provisionerKey(ctx context.Context, c *connection, rejected *provisionerKey) (*provisionerKey, error) {
	if key := s.key.Load(); key != nil && key != rejected {
		return key, nil
	}
	return once(ctx, s, "get the provisioner's key", func(ctx context.Context) (*provisionerKey, error) {
		current := s.key.Load()
		if current != nil && current != rejected {
			return current, nil
		}
		key, err := s.fetchProvisionerKey(ctx, c, current)
		if err == nil {
			s.key.Store(key)
		}
		return key, err
	})
}

// fetchProvisionerKey returns the key of the first JWK provisioner with the configured
// name whose key the password decrypts. While a provisioner is replaced, the CA may
// have two with the name.
func (s *Signer) fetchProvisionerKey(ctx context.Context, c *connection, current *provisionerKey) (*provisionerKey, error) {
	password, err := s.config.Password()
	if err != nil {
		return nil, fmt.Errorf("read the provisioner's password: %w", err)
	}
	password = bytes.TrimRight(password, "\r\n")
	defer clear(password)

	found := false
	for cursor := ""; ; {
		page, err := c.client.ProvisionersWithContext(ctx, ca.WithProvisionerCursor(cursor), ca.WithProvisionerLimit(100))
		if err != nil {
			return nil, err
		}
		for _, p := range page.Provisioners {
			// Key is nil in an entry without "key", for which GetEncryptedKey panics.
			jwk, ok := p.(*provisioner.JWK)
			if !ok || jwk.Name != s.config.Provisioner || jwk.Key == nil || jwk.EncryptedKey == "" {
				continue
			}
			found = true
			if current != nil && current.encrypted == jwk.EncryptedKey && current.password == sha256.Sum256(password) {
				return current, nil
			}
			if key, err := decryptProvisionerKey(s.config.Provisioner, jwk.EncryptedKey, password); err == nil {
				return key, nil
			}
		}
		if page.NextCursor == "" || page.NextCursor == cursor {
			break
		}
		cursor = page.NextCursor
	}
	if found {
		return nil, fmt.Errorf("the password does not open the key of provisioner %q: "+
			"is the password in provisioner.passwordFile that of this provisioner?",
			s.config.Provisioner)
	}
	return nil, fmt.Errorf("the CA has no JWK provisioner %q with an encrypted key; see: step ca provisioner list", s.config.Provisioner)
}

// decryptProvisionerKey takes about 100 ms of CPU time: PBKDF2 stretches the password.
func decryptProvisionerKey(name, encrypted string, password []byte) (*provisionerKey, error) {
	plain, err := jose.Decrypt([]byte(encrypted), jose.WithPassword(password))
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(plain, &jwk); err != nil {
		return nil, err
	}
	options := new(jose.SignerOptions).WithType("JWT").WithHeader("kid", jwk.KeyID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(jwk.Algorithm), Key: jwk.Key}, options)
	if err != nil {
		return nil, err
	}
	return &provisionerKey{provisioner: name, encrypted: encrypted, password: sha256.Sum256(password), signer: signer}, nil
}

// tokenClaims are the claims of a one-time token beyond the registered ones.
type tokenClaims struct {
	jose.Claims
	SANs         []string      `json:"sans,omitempty"`
	Confirmation *confirmation `json:"cnf,omitempty"`
}

// confirmation binds a token to one CSR, so that a stolen token is useless.
type confirmation struct {
	Fingerprint string `json:"x5rt#S256"`
}

// token mints a one-time token for one of the CA's operations on the subject.
func (k *provisionerKey) token(caURL *url.URL, operation, subject string, claims tokenClaims) (string, error) {
	now := time.Now()
	claims.Claims = jose.Claims{
		ID:        rand.Text(),
		Issuer:    k.provisioner,
		Subject:   subject,
		Audience:  jose.Audience{caURL.JoinPath("1.0", operation).String()},
		IssuedAt:  jose.NewNumericDate(now),
		NotBefore: jose.NewNumericDate(now),
		Expiry:    jose.NewNumericDate(now.Add(tokenLifetime)),
	}
	return jose.Signed(k.signer).Claims(claims).CompactSerialize()
}
