package stepca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/ca"
	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/x509util"

	"github.com/flexstack/step-csi/issuer"
)

// tokenLifetime leaves room for clocks that differ and for a busy CA.
const tokenLifetime = 5 * time.Minute

// provisionerKey mints one-time tokens of a JWK provisioner.
type provisionerKey struct {
	provisioner string
	encrypted   string // as the CA publishes it; tells a replaced key
	password    [sha256.Size]byte
	signer      jose.Signer
}

// provisionerKey returns the kept key. If there is none, or it is the one that
// the CA has just refused, it is fetched; the answer is the refused one itself
// if neither it nor the password has changed.
func (s *Signer) provisionerKey(ctx context.Context, c *connection, refused *provisionerKey) (*provisionerKey, error) {
	if key := s.key.Load(); key != nil && key != refused {
		return key, nil
	}
	key, err := once(ctx, s, "key", func(ctx context.Context) (*provisionerKey, error) {
		current := s.key.Load()
		if current != nil && current != refused {
			return current, nil
		}
		key, err := s.fetchProvisionerKey(ctx, c, current)
		if err == nil {
			s.key.Store(key)
		}
		return key, err
	})
	if err != nil {
		return nil, s.explain(ctx, "get the provisioner's key", err)
	}
	return key, nil
}

// fetchProvisionerKey takes the first JWK provisioner of the configured name
// whose key the password opens. While a provisioner is being replaced there may
// be two of one name.
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
			_, encrypted, ok := p.GetEncryptedKey()
			if p.GetName() != s.config.Provisioner || p.GetType() != provisioner.TypeJWK || !ok {
				continue
			}
			found = true
			if current != nil && current.encrypted == encrypted && current.password == sha256.Sum256(password) {
				return current, nil
			}
			if key, err := decryptProvisionerKey(s.config.Provisioner, encrypted, password); err == nil {
				return key, nil
			}
		}
		if page.NextCursor == "" || page.NextCursor == cursor {
			break
		}
		cursor = page.NextCursor
	}
	if found {
		return nil, fmt.Errorf("%w %q: is the password in provisioner.passwordFile the one of this provisioner?", errWrongPassword, s.config.Provisioner)
	}
	return nil, fmt.Errorf("%w %q with its key kept at the CA; see: step ca provisioner list", errNoProvisioner, s.config.Provisioner)
}

// decryptProvisionerKey costs about 100 ms of CPU: the password is stretched.
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

// confirmation binds a token to one CSR, so that it is of no use to whoever
// else gets hold of it.
type confirmation struct {
	Fingerprint string `json:"x5rt#S256"`
}

// signToken mints a one-time token for exactly the request's names and CSR.
func (k *provisionerKey) signToken(authority *url.URL, req issuer.SigningRequest) (string, error) {
	sans, err := sans(req.Request)
	if err != nil {
		return "", err
	}
	fingerprint := sha256.Sum256(req.CSR.Raw)
	return k.token(authority, "sign", req.Request.CommonName, tokenClaims{
		SANs:         sans,
		Confirmation: &confirmation{base64.RawURLEncoding.EncodeToString(fingerprint[:])},
	})
}

// token mints a one-time token for one of the CA's operations on the subject.
func (k *provisionerKey) token(authority *url.URL, operation, subject string, claims tokenClaims) (string, error) {
	now := time.Now()
	claims.Claims = jose.Claims{
		ID:        rand.Text(),
		Issuer:    k.provisioner,
		Subject:   subject,
		Audience:  jose.Audience{authority.JoinPath("1.0", operation).String()},
		IssuedAt:  jose.NewNumericDate(now),
		NotBefore: jose.NewNumericDate(now),
		Expiry:    jose.NewNumericDate(now.Add(tokenLifetime)),
	}
	return jose.Signed(k.signer).Claims(claims).CompactSerialize()
}

// sans are the names as the token carries them: strings, whose types step-ca
// guesses. A name that it would take for one of another type is refused.
func sans(req issuer.Request) ([]string, error) {
	ips, uris := texts(req.IPAddresses, netip.Addr.String), texts(req.URIs, (*url.URL).String)
	all := slices.Concat(req.DNSNames, ips, uris, req.EmailAddresses)
	dns, addresses, emails, identifiers := x509util.SplitSANs(all)
	if !slices.Equal(dns, req.DNSNames) || !slices.Equal(emails, req.EmailAddresses) ||
		!slices.Equal(texts(addresses, net.IP.String), ips) || !slices.Equal(texts(identifiers, (*url.URL).String), uris) {
		return nil, fmt.Errorf("%w: step-ca would take one of the names %q for one of another type", issuer.Denied, all)
	}
	return all, nil
}

func texts[T any](values []T, text func(T) string) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = text(v)
	}
	return all
}
