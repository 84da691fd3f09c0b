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

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/ca"
	"go.step.sm/crypto/jose"
)

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

// fetchProvisionerKey returns the current key if the CA still has it and the password
// is the same. Otherwise it returns the first key that the password decrypts: while a
// provisioner is replaced, the CA may have two with the name. It also stores the claims
// of the provisioner.
func (s *Signer) fetchProvisionerKey(ctx context.Context, c *connection, current *provisionerKey) (*provisionerKey, error) {
	password, err := s.config.Password()
	if err != nil {
		return nil, fmt.Errorf("read the provisioner's password: %w", err)
	}
	password = bytes.TrimRight(password, "\r\n")
	defer clear(password)

	asked := time.Now()
	provisioners, err := s.fetchProvisioners(ctx, c)
	if err != nil {
		return nil, err
	}
	if len(provisioners) == 0 {
		return nil, fmt.Errorf("the CA has no JWK provisioner %q with an encrypted key; see: step ca provisioner list", s.config.Provisioner)
	}
	for _, p := range provisioners {
		if current != nil && current.encrypted == p.EncryptedKey && current.password == sha256.Sum256(password) {
			s.claims.Store(&claims{asked: asked, renewal: s.holderRenewal(p)})
			return current, nil
		}
	}
	for _, p := range provisioners {
		if key, err := decryptProvisionerKey(s.config.Provisioner, p.EncryptedKey, password); err == nil {
			s.claims.Store(&claims{asked: asked, renewal: s.holderRenewal(p)})
			return key, nil
		}
	}
	return nil, fmt.Errorf("the password does not open the key of provisioner %q: "+
		"is the password in provisioner.passwordFile that of this provisioner?",
		s.config.Provisioner)
}

// Bounds of what the CA can make this process do by its list of provisioners.
const (
	pageSize        = 100      // provisioners, step-ca's maximum
	mostPages       = 100      // of one list
	mostCandidates  = 8        // provisioners with the configured name; to decrypt the key of one takes 100 ms
	maxEncryptedKey = 64 << 10 // bytes; step-ca's own are below 1 KiB
)

// fetchProvisioners returns the JWK provisioners with the configured name and an
// encrypted key. It reads the whole list of the CA, in pages. It retries once if the
// connection broke, such as by a restart of the CA.
func (s *Signer) fetchProvisioners(ctx context.Context, c *connection) (found []*provisioner.JWK, err error) {
	fetch := func(cursor string) (*api.ProvisionersResponse, error) {
		return c.client.ProvisionersWithContext(ctx, ca.WithProvisionerCursor(cursor), ca.WithProvisionerLimit(pageSize))
	}
	cursor := ""
	for range mostPages {
		page, err := fetch(cursor)
		if isBroken(err) && ctx.Err() == nil {
			page, err = fetch(cursor)
		}
		if err != nil {
			return nil, err
		}
		for _, p := range page.Provisioners {
			// Key is nil in an entry without "key", for which GetEncryptedKey panics.
			jwk, ok := p.(*provisioner.JWK)
			if !ok || jwk.Name != s.config.Provisioner || jwk.Key == nil || jwk.EncryptedKey == "" {
				continue
			}
			if len(found) < mostCandidates && len(jwk.EncryptedKey) <= maxEncryptedKey {
				found = append(found, jwk)
			}
		}
		if page.NextCursor == "" || page.NextCursor == cursor {
			return found, nil
		}
		cursor = page.NextCursor
	}
	return nil, fmt.Errorf("%w: its list of provisioners has more than %d pages", errNotStepCA, mostPages)
}

// claims are the claims of the provisioner at the CA.
type claims struct {
	asked   time.Time
	renewal string // as HolderRenewal returns it
}

// HolderRenewal implements issuer.HolderRenewal. The CA answers a provisioner's own
// claims, and not those in authority.claims of its ca.json: a provisioner that inherits
// the claim counts as one without it.
func (s *Signer) HolderRenewal(ctx context.Context, maxAge time.Duration) (allowed string, err error) {
	if known := s.claims.Load(); known != nil && time.Since(known.asked) < maxAge {
		return known.renewal, nil
	}
	c, err := s.connected(ctx)
	if err != nil {
		return "", err
	}
	return once(ctx, s, "read the provisioner", func(ctx context.Context) (string, error) {
		key, err := s.fetchProvisionerKey(ctx, c, s.key.Load())
		if err != nil {
			return "", err
		}
		s.key.Store(key)
		return s.claims.Load().renewal, nil
	})
}

// holderRenewal says why step-ca renews the provisioner's certificates for their
// holders, and what to change. The text is empty if it does not. See DefaultAuthorizeRenew in
// https://github.com/smallstep/certificates/blob/v0.30.2/authority/provisioner/controller.go.
func (s *Signer) holderRenewal(p *provisioner.JWK) string {
	is := func(claim *bool) bool { return claim != nil && *claim }
	switch own := p.Claims; {
	case own == nil || !is(own.DisableRenewal):
		return fmt.Sprintf("provisioner %q of the CA %s does not have the claim disableRenewal, so that anyone who has a certificate and its key can renew it without end; "+
			"run at the CA: step ca provisioner update %[1]q --disable-renewal=true, and let step-ca load its configuration again", p.Name, s.url)
	case is(own.DisableSmallstepExtensions):
		// Without its extension in the certificate, and without a database, step-ca does
		// not know which provisioner's claims count, and renews.
		return fmt.Sprintf("provisioner %q of the CA %s has the claim disableSmallstepExtensions, with which step-ca may renew certificates in spite of disableRenewal; "+
			"run at the CA: step ca provisioner update %[1]q --disable-smallstep-extensions=false, and let step-ca load its configuration again", p.Name, s.url)
	}
	return ""
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
	claims.Claims = jose.Claims{
		ID:       rand.Text(),
		Issuer:   k.provisioner,
		Subject:  subject,
		Audience: jose.Audience{caURL.JoinPath("1.0", operation).String()},
	}
	claims.NotBefore, claims.Expiry = tokenValidity(time.Now())
	return jose.Signed(k.signer).Claims(claims).CompactSerialize()
}
