package stepca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/ca"
	"go.step.sm/crypto/jose"

	"github.com/flexstack/step-csi/issuer/chartvalue"
)

// provisionerKey mints one-time tokens of the provisioner.
type provisionerKey struct {
	provisioner string
	fragment    string // of the audience: step-ca finds an X5C provisioner by it
	kid         string // in the CA's list; empty for X5C
	source      [sha256.Size]byte
	signer      jose.Signer

	// Validity of the certificate that signs the tokens; zero for JWK.
	issued, expires time.Time
}

// newProvisionerKey returns a key whose tokens have the header of the options.
func newProvisionerKey(name string, key *privateKey, options *jose.SignerOptions) (*provisionerKey, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: key.algorithm, Key: key.Key}, options.WithType("JWT"))
	if err != nil {
		return nil, err
	}
	return &provisionerKey{provisioner: name, source: key.source, signer: signer}, nil
}

// expired tells whether the certificate that signs the tokens has expired, or is about to.
func (k *provisionerKey) expired() bool {
	return !k.expires.IsZero() && time.Until(k.expires) <= clockSkew
}

// provisionerKey returns the provisioner's key. It fetches the key if there is none, if
// its certificate has expired, or if the CA rejected that key. If nothing that the key
// was made of has changed, it returns the rejected key.
func (s *Signer) provisionerKey(ctx context.Context, c *connection, rejected *provisionerKey) (*provisionerKey, error) {
	usable := func(key *provisionerKey) bool { return key != nil && key != rejected && !key.expired() }
	if key := s.key.Load(); usable(key) {
		return key, nil
	}
	return once(ctx, s, "get the provisioner's key", func(ctx context.Context) (*provisionerKey, error) {
		current := s.key.Load()
		if usable(current) {
			return current, nil
		}
		key, err := s.fetchProvisionerKey(ctx, c, current)
		if err == nil {
			s.key.Store(key)
		}
		return key, err
	})
}

// fetchProvisionerKey reads the provisioner at the CA, and the files. It returns the
// current key if none of them has changed. It also stores the claims of the provisioner.
func (s *Signer) fetchProvisionerKey(ctx context.Context, c *connection, current *provisionerKey) (*provisionerKey, error) {
	asked := time.Now()
	found, err := s.fetchProvisioners(ctx, c)
	if err != nil {
		return nil, err
	}
	var key *provisionerKey
	var own *provisioner.Claims
	if s.usesX5C() {
		key, own, err = s.x5cKey(found.x5c, c.roots.Own, current)
	} else {
		key, own, err = s.jwkKey(found.jwk, current)
	}
	if err != nil {
		return nil, err
	}
	s.claims.Store(&claims{asked: asked, renewal: s.holderRenewal(own), lifetimes: claimedLifetimes(own)})
	return key, nil
}

// usesX5C tells whether a certificate signs the tokens.
func (s *Signer) usesX5C() bool { return s.config.Certificate != nil }

// jwkKey returns the key of one of the JWK provisioners: while a provisioner is
// replaced, the CA may have two with the name.
func (s *Signer) jwkKey(found []*provisioner.JWK, current *provisionerKey) (*provisionerKey, *provisioner.Claims, error) {
	var password []byte
	if s.config.Password != nil {
		var err error
		if password, err = s.config.Password(); err != nil {
			return nil, nil, fmt.Errorf("read the provisioner's password: %w", err)
		}
		password = bytes.TrimRight(password, "\r\n")
		defer clear(password)
	}
	if s.config.Key != nil {
		return s.keyOfFile(found, password, current)
	}
	for _, p := range found {
		if current != nil && current.kid == p.Key.KeyID && current.source == source([]byte(p.EncryptedKey), password) {
			return current, p.Claims, nil
		}
	}
	var reasons []string
	for _, p := range found {
		key, err := s.keyAtTheCA(p, password)
		if err == nil {
			return key, p.Claims, nil
		}
		reasons = append(reasons, err.Error())
	}
	return nil, nil, oneOf(reasons)
}

// keyAtTheCA decrypts the private key that the CA publishes.
func (s *Signer) keyAtTheCA(p *provisioner.JWK, password []byte) (*provisionerKey, error) {
	name := fmt.Sprintf("provisioner %q (kid %.64q)", p.Name, p.Key.KeyID)
	passwordFile, keyFile := chartvalue.Beside("provisioner.passwordFile"), chartvalue.Beside("provisioner.keyFile")
	switch {
	case p.EncryptedKey == "":
		return nil, fmt.Errorf("%s does not keep the private key of %s: its encryptedKey is empty; set %s to a file with this key", s.name(), name, keyFile)
	case len(p.EncryptedKey) > maxEncryptedKey:
		return nil, fmt.Errorf("the encrypted key of %s at the CA is longer than %d bytes", name, maxEncryptedKey)
	}
	key, err := decryptJWK(p.EncryptedKey, password)
	switch {
	case errors.Is(err, errWrongPassword):
		return nil, fmt.Errorf("the password does not open the key of %s: is the password in %s that of this provisioner?", name, passwordFile)
	case err != nil:
		return nil, fmt.Errorf("the encrypted key of %s at the CA %w; create the provisioner again with: step ca provisioner add, or set %s", name, err, keyFile)
	case key.thumbprint != thumbprint(p):
		return nil, fmt.Errorf("the encrypted key of %s at the CA has the thumbprint %s, and the public key beside it has %s; correct its encryptedKey, or set %s",
			name, key.thumbprint, thumbprint(p), keyFile)
	}
	key.source = source([]byte(p.EncryptedKey), password)
	return newJWKKey(p, key)
}

// keyOfFile reads the private key from provisioner.keyFile, and finds the provisioner
// that it belongs to.
func (s *Signer) keyOfFile(found []*provisioner.JWK, password []byte, current *provisionerKey) (*provisionerKey, *provisioner.Claims, error) {
	keyFile := chartvalue.Beside("provisioner.keyFile")
	file, err := s.config.Key()
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", keyFile, err)
	}
	defer clear(file)
	key, err := s.parsed(file, password)
	if errors.Is(err, errWrongPassword) {
		return nil, nil, fmt.Errorf("%s: the password in %s does not open the key: is it the password of this file?", keyFile, chartvalue.Beside("provisioner.passwordFile"))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: the file %w", keyFile, err)
	}
	var others []string
	for _, p := range found {
		if key.thumbprint == thumbprint(p) {
			if current != nil && current.kid == p.Key.KeyID && current.source == key.source {
				return current, p.Claims, nil
			}
			made, err := newJWKKey(p, key)
			return made, p.Claims, err
		}
		others = append(others, fmt.Sprintf("%s (kid %.64q)", thumbprint(p), p.Key.KeyID))
	}
	return nil, nil, fmt.Errorf("%s: the key has the thumbprint %s, which is not that of provisioner %q at the CA: %s; "+
		"use the key of this provisioner, or correct provisioner.name", keyFile, key.thumbprint, s.config.Provisioner, shorten(others))
}

// parsed parses the key file, unless it did so before.
func (s *Signer) parsed(file, password []byte) (*privateKey, error) {
	from := source(file, password)
	if key := s.keyFile.Load(); key != nil && key.source == from {
		return key, nil
	}
	key, err := parseKeyFile(file, password)
	if err != nil {
		return nil, err
	}
	key.source = from
	s.keyFile.Store(key)
	return key, nil
}

// newJWKKey returns a key that mints tokens of the provisioner. Its kid is that of the
// CA's list, which step-ca finds the provisioner by: the key itself may have none.
func newJWKKey(p *provisioner.JWK, key *privateKey) (*provisionerKey, error) {
	made, err := newProvisionerKey(p.Name, key, new(jose.SignerOptions).WithHeader("kid", p.Key.KeyID))
	if err != nil {
		return nil, err
	}
	made.kid = p.Key.KeyID
	token, err := jose.Signed(made.signer).Claims(jose.Claims{}).CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("the key of provisioner %q does not sign: %w", p.Name, err)
	}
	parsed, err := jose.ParseSigned(token)
	if err == nil {
		err = parsed.Claims(p.Key, &jose.Claims{})
	}
	if err != nil {
		return nil, fmt.Errorf("the key of provisioner %q has a private part that does not belong to its public part: use another copy of the key", p.Name)
	}
	return made, nil
}

// thumbprint returns the thumbprint of the provisioner's public key, by RFC 7638.
func thumbprint(p *provisioner.JWK) string {
	sum, err := jose.Thumbprint(p.Key)
	if err != nil {
		return "none"
	}
	return sum
}

// oneOf returns the reasons, of which at least one is to be corrected, in one line.
func oneOf(reasons []string) error {
	slices.Sort(reasons)
	return errors.New(strings.Join(slices.Compact(reasons), "; "))
}

// shorten lists the first of many texts.
func shorten(texts []string) string {
	const most = 20
	if len(texts) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(texts[:most], ", "), len(texts)-most)
	}
	return strings.Join(texts, ", ")
}

// Bounds of what the CA can make this process do by its list of provisioners.
const (
	pageSize        = 100      // provisioners, step-ca's maximum
	mostPages       = 100      // of one list
	mostCandidates  = 8        // provisioners with the configured name; to decrypt the key of one takes 100 ms
	maxEncryptedKey = 64 << 10 // bytes; step-ca's own are below 1 KiB
)

// listed is what the CA's list of provisioners has.
type listed struct {
	jwk   []*provisioner.JWK // with the configured name, and the configured kid
	x5c   []*provisioner.X5C // with the configured name
	types []string           // of the provisioners with the configured name
	kids  []string           // of the JWK provisioners with the configured name
	all   []string           // all provisioners, with their types
}

func (l *listed) add(p provisioner.Interface, name, kid string) {
	l.all = append(l.all, fmt.Sprintf("%.64q (%s)", p.GetName(), p.GetType()))
	// step-ca's names have no length limit; a name that is cut is another name.
	if p.GetName() != name {
		return
	}
	switch p := p.(type) {
	case *provisioner.JWK:
		if p.Key == nil { // malformed; most methods of p would panic
			return
		}
		if len(l.kids) < mostCandidates {
			l.kids = append(l.kids, fmt.Sprintf("%.64q", p.Key.KeyID))
		}
		if len(l.jwk) < mostCandidates && (kid == "" || kid == p.Key.KeyID) {
			l.jwk = append(l.jwk, p)
		}
	case *provisioner.X5C:
		if len(l.x5c) < mostCandidates {
			l.x5c = append(l.x5c, p)
		}
	}
	if kind := p.GetType().String(); !slices.Contains(l.types, kind) {
		l.types = append(l.types, kind)
	}
}

// fetchProvisioners returns the provisioners with the configured name and type, at least
// one. It reads the whole list of the CA, in pages. It retries once if the connection
// broke, such as by a restart of the CA.
func (s *Signer) fetchProvisioners(ctx context.Context, c *connection) (*listed, error) {
	fetch := func(cursor string) (*api.ProvisionersResponse, error) {
		return c.client.ProvisionersWithContext(ctx, ca.WithProvisionerCursor(cursor), ca.WithProvisionerLimit(pageSize))
	}
	found, cursor := &listed{}, ""
	for range mostPages {
		page, err := fetch(cursor)
		if isBroken(err) && ctx.Err() == nil {
			page, err = fetch(cursor)
		}
		if err != nil {
			return nil, err
		}
		for _, p := range page.Provisioners {
			found.add(p, s.config.Provisioner, s.config.KeyID)
		}
		if page.NextCursor == "" || page.NextCursor == cursor {
			return found, s.missing(found)
		}
		cursor = page.NextCursor
	}
	return nil, fmt.Errorf("%w: its list of provisioners has more than %d pages", errNotStepCA, mostPages)
}

// missing says why there is no provisioner with the configured name and type, and what
// to change. It returns nil if there is one.
func (s *Signer) missing(found *listed) error {
	name, kind := s.config.Provisioner, "JWK"
	if s.usesX5C() {
		kind = "X5C"
	}
	switch {
	case kind == "JWK" && len(found.jwk) > 0, kind == "X5C" && len(found.x5c) > 0:
		return nil
	case kind == "JWK" && len(found.kids) > 0:
		return fmt.Errorf("%s has no JWK provisioner %q with the kid %q; those with this name have the kid %s: correct provisioner.kid, or leave it out",
			s.name(), name, s.config.KeyID, strings.Join(found.kids, ", "))
	case kind == "JWK" && slices.Contains(found.types, "X5C"):
		return fmt.Errorf("provisioner %q is of the type X5C, and provisioner.type is jwk: set provisioner.type to x5c, with certificateFile and privateKeyFile (in the chart: certificateSecret), or name a JWK provisioner", name)
	case kind == "X5C" && slices.Contains(found.types, "JWK"):
		return fmt.Errorf("provisioner %q is of the type JWK, and provisioner.type is x5c: set provisioner.type to jwk, with passwordFile or keyFile (in the chart: passwordSecret, keySecret), or name an X5C provisioner", name)
	case len(found.types) > 0:
		return fmt.Errorf("provisioner %q is of the type %s, with which step-csi cannot sign: name a provisioner of the type JWK (provisioner.type: jwk) or X5C (provisioner.type: x5c)",
			name, strings.Join(found.types, ", "))
	case len(found.all) == 0:
		return fmt.Errorf("%s has no %s provisioner %q, and no other; create it with: step ca provisioner add", s.name(), kind, name)
	}
	slices.Sort(found.all)
	return fmt.Errorf("%s has no %s provisioner %q; it has %s: correct provisioner.name", s.name(), kind, name, shorten(found.all))
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
func (s *Signer) holderRenewal(own *provisioner.Claims) string {
	is := func(claim *bool) bool { return claim != nil && *claim }
	switch {
	case own == nil || !is(own.DisableRenewal):
		return fmt.Sprintf("provisioner %q of %s does not have the claim disableRenewal, so that anyone who has a certificate and its key can renew it indefinitely; "+
			"run at the CA: step ca provisioner update %[1]q --disable-renewal=true, and let step-ca load its configuration again", s.config.Provisioner, s.name())
	case is(own.DisableSmallstepExtensions):
		// Without its extension in the certificate, and without a database, step-ca does
		// not know which provisioner's claims count, and renews.
		return fmt.Sprintf("provisioner %q of %s has the claim disableSmallstepExtensions, with which step-ca may renew certificates in spite of disableRenewal; "+
			"run at the CA: step ca provisioner update %[1]q --disable-smallstep-extensions=false, and let step-ca load its configuration again", s.config.Provisioner, s.name())
	}
	return ""
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
	audience := caURL.JoinPath("1.0", operation)
	audience.Fragment = k.fragment
	claims.Claims = jose.Claims{
		ID:       rand.Text(),
		Issuer:   k.provisioner,
		Subject:  subject,
		Audience: jose.Audience{audience.String()},
	}
	claims.NotBefore, claims.Expiry = tokenValidity(time.Now())
	return jose.Signed(k.signer).Claims(claims).CompactSerialize()
}
