// Package stepca has a Smallstep step-ca sign: over its HTTP API, with one-time tokens
// of a JWK or X5C provisioner.
//
// New does not call the CA. A Signer connects at its first use, keeps the connection,
// the roots and the provisioner's key, and fetches them again when the CA rejects what
// it has.
package stepca

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"
	"golang.org/x/crypto/ocsp"
	"golang.org/x/sync/singleflight"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/clock"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/trust"
)

// defaultTimeout bounds one call to the CA, which takes a few milliseconds normally.
const defaultTimeout = 15 * time.Second

// Config is what a Signer needs.
type Config struct {
	// URL of the CA, https only. Its host is one of the CA's DNS names.
	URL string
	// Fingerprint is the SHA-256 of a root of the CA, in hexadecimal; several are
	// separated by commas. Either Fingerprint or CABundle is needed.
	Fingerprint string
	// CABundle holds roots of the CA, in PEM.
	CABundle []byte
	// Pinned means that no other root is used, whatever the CA answers: not for the
	// connection to the CA, not for pods, and not to check issued certificates.
	Pinned bool
	// ServerRoots verify the server's certificate in TLS, if something in front of the CA,
	// such as an ingress, has a certificate that the CA has not signed. The CA's roots are
	// then pinned, whatever Pinned says: over such a connection, the CA cannot prove that a
	// new root is its own. Nil means that the CA's own roots verify the server.
	ServerRoots *x509.CertPool
	// Provisioner is the name of the CA's provisioner. Its type is X5C if Certificate is
	// set, and otherwise JWK.
	Provisioner string
	// KeyID chooses one of several JWK provisioners with the name. It may be empty.
	KeyID string
	// Key returns the private key of a JWK provisioner that is not kept at the CA: a JWK,
	// an encrypted JWK, or PEM. Nil means that the CA keeps it, encrypted.
	Key func() ([]byte, error)
	// Password returns the password of the JWK provisioner's key. It may be nil if Key
	// returns a key that is not encrypted.
	Password func() ([]byte, error)
	// Certificate and PrivateKey return the certificate, followed by its intermediates,
	// and the key that sign tokens of an X5C provisioner, in PEM.
	//
	// All these functions are called again at the latest when HolderRenewal is called, when
	// the CA rejects a token, and when the certificate has expired. They return a slice that
	// the signer may overwrite.
	Certificate, PrivateKey func() ([]byte, error)
	// Federation requests also the roots of the CAs that this CA is federated with.
	Federation bool
	// Shown, if not nil, is called with the CA's serving certificate in every handshake, once
	// it is verified, before the CA answers anything.
	Shown func(*x509.Certificate)
	// Timeout of one call to the CA; zero means 15 s.
	Timeout time.Duration
}

// Signer is an issuer.Signer.
type Signer struct {
	config Config
	url    *url.URL
	pins   trust.Pins
	trust  *trust.Store
	// dialTimeout bounds how long a new connection may take to open, if it is not zero.
	dialTimeout time.Duration
	clock       clock.Comparison // with the CA's

	calls      singleflight.Group // connect, fetch the provisioner's key, refresh the roots
	connection atomic.Pointer[connection]
	key        atomic.Pointer[provisionerKey]
	keyFile    atomic.Pointer[privateKey] // as last parsed
	claims     atomic.Pointer[claims]
}

var (
	_ issuer.Signer           = (*Signer)(nil)
	_ issuer.Revoker          = (*Signer)(nil)
	_ issuer.HolderRenewal    = (*Signer)(nil)
	_ issuer.TokenCertificate = (*Signer)(nil)
	_ issuer.LifetimeClaims   = (*Signer)(nil)
	_ issuer.Clock            = (*Signer)(nil)
	_ issuer.Intermediates    = (*Signer)(nil)
)

// New checks the configuration. It does not call the CA.
func New(c Config) (*Signer, error) {
	u, err := trust.ParseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	c.Timeout = cmp.Or(c.Timeout, defaultTimeout)
	s := &Signer{config: c, url: u}
	if c.Provisioner == "" {
		return nil, errors.New("provisioner.name: name the CA's provisioner, such as admin")
	}
	switch {
	case (c.Certificate == nil) != (c.PrivateKey == nil):
		return nil, fmt.Errorf("%s and %s: name the files with the certificate that signs tokens, and with its key",
			chartvalue.Beside("provisioner.certificateFile"), chartvalue.Beside("provisioner.privateKeyFile"))
	case c.Certificate != nil && (c.Key != nil || c.Password != nil || c.KeyID != ""):
		return nil, errors.New("provisioner: an X5C provisioner has a certificate, and neither kid nor keyFile nor passwordFile")
	case c.Certificate == nil && c.Key == nil && c.Password == nil:
		return nil, fmt.Errorf("%s: name the file with the password of the provisioner's key, or the file with the key itself in %s",
			chartvalue.Beside("provisioner.passwordFile"), chartvalue.Beside("provisioner.keyFile"))
	}
	if s.pins, err = trust.Parse(c.Fingerprint, c.CABundle); err != nil {
		return nil, err
	}
	s.pins.Only = c.Pinned || c.ServerRoots != nil
	s.trust = trust.NewStore(u.String(), s.pins)
	// Otherwise the client would read $STEPPATH/config/identity.json of the host.
	ca.DisableIdentity = true
	return s, nil
}

// Connect checks that the CA can be reached, is trusted, and has the provisioner, and
// that the password decrypts the provisioner's key, or that the certificate is one that
// the provisioner accepts.
func (s *Signer) Connect(ctx context.Context) error {
	c, err := s.connected(ctx)
	if err != nil {
		return err
	}
	_, err = s.provisionerKey(ctx, c, nil)
	return err
}

// Close closes the connection to the CA. A later call opens it again.
func (s *Signer) Close() {
	if c := s.connection.Load(); c != nil {
		c.transport.CloseIdleConnections()
	}
}

// Roots returns the roots that the CA answered last.
func (s *Signer) Roots(ctx context.Context) (issuer.Roots, error) {
	c, err := s.connected(ctx)
	if err != nil {
		return issuer.Roots{}, err
	}
	return c.roots, nil
}

// RefreshRoots requests the CA's roots.
func (s *Signer) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	old := s.connection.Load()
	if old == nil {
		return s.Roots(ctx) // the first connection fetches them
	}
	return once(ctx, s, "get the roots", func(ctx context.Context) (issuer.Roots, error) {
		if c := s.connection.Load(); c != old {
			return c.roots, nil
		}
		fresh := *old
		if err := s.fetchRoots(ctx, &fresh); err != nil {
			return issuer.Roots{}, err
		}
		return s.follow(ctx, &fresh).roots, nil
	})
}

// Trust holds the roots that the CA is verified by.
func (s *Signer) Trust() *trust.Store { return s.trust }

// CompareClocks implements issuer.Clock.
func (s *Signer) CompareClocks() string { return s.clock.Describe("CA") }

// Sign has the CA sign the CSR.
func (s *Signer) Sign(ctx context.Context, req issuer.SigningRequest) (chain []*x509.Certificate, err error) {
	fingerprint := sha256.Sum256(req.CSR.Raw)
	claims := tokenClaims{
		// step-ca guesses their types. For names of package names, it guesses right.
		SANs:         req.Request.AlternativeNames(),
		Confirmation: &confirmation{base64.RawURLEncoding.EncodeToString(fingerprint[:])},
	}
	body := &api.SignRequest{CsrPEM: api.NewCertificateRequest(req.CSR), TemplateData: req.Request.TemplateInput()}
	// Relative to the CA's clock: the clock here may differ.
	body.NotAfter.SetDuration(req.Request.Duration)
	shortened := ""
	call := func(ctx context.Context, c *connection, key *provisionerKey, token string) error {
		duration, err := key.atMost(req.Request.Duration)
		if err != nil {
			return err
		}
		if duration < req.Request.Duration && body.NotAfter != (api.TimeDuration{}) {
			body.NotAfter.SetDuration(duration)
			shortened = fmt.Sprintf("; the request was for %s instead of %s, because the certificate in %s expires at %s: renew it",
				duration.Round(time.Second), req.Request.Duration, chartvalue.Beside("provisioner.certificateFile"), key.expires.Format(time.RFC3339))
		}
		body.OTT = token
		answer, err := c.client.SignWithContext(ctx, body)
		if err != nil {
			return err
		}
		chain, err = certificates(answer.CertChainPEM)
		return err
	}
	err = s.authorized(ctx, "sign", req.Request.CommonName.String(), claims, call)
	if req.DefaultLifetime && isTooLong(err) {
		// The claims of the whole CA limit it, which it does not show. Its own default
		// is shorter.
		body.NotAfter = api.TimeDuration{}
		err = s.authorized(ctx, "sign", req.Request.CommonName.String(), claims, call)
	}
	if statusOf(err) == http.StatusInternalServerError && body.TemplateData != nil {
		// No outage: a pod could otherwise keep the others from their certificates.
		return nil, fmt.Errorf("%s: sign: %w: %w%s", s.name(), issuer.InvalidAnswer, plain(err), failedInput)
	}
	if statusOf(err) == http.StatusForbidden {
		return nil, fmt.Errorf("%w%s", s.explain(ctx, "sign", err), shortened)
	}
	if err != nil {
		return nil, s.explain(ctx, "sign", err)
	}
	return chain, nil
}

// Revoke revokes the certificate with the serial number; it needs nothing else of r.
// step-ca revokes passively: it no longer renews the certificate, and lists it in the
// CRL if it is configured to publish one. It needs a database for that. See
// https://smallstep.com/docs/step-ca/revocation/.
func (s *Signer) Revoke(ctx context.Context, r issuer.Revocation) error {
	err := s.authorized(ctx, "revoke", r.Serial, tokenClaims{}, func(ctx context.Context, c *connection, _ *provisionerKey, token string) error {
		_, err := c.client.RevokeWithContext(ctx, &api.RevokeRequest{
			Serial: r.Serial, OTT: token, Passive: true,
			ReasonCode: ocsp.CessationOfOperation, Reason: "the pod is gone",
		}, nil)
		return err
	})
	switch {
	case err == nil:
		return nil
	case statusOf(err) == http.StatusBadRequest && strings.Contains(plain(err).Error(), "is already revoked"):
		return nil // the answer to an earlier request may have been lost
	case statusOf(err) == http.StatusNotImplemented:
		return fmt.Errorf("%w: %s has no database, which step-ca needs to revoke; give it one (db in its ca.json), or leave revoke-on-delete out",
			issuer.Unsupported, s.name())
	}
	return s.explain(ctx, "revoke", err)
}

// authorized makes a call with a one-time token for the operation on the subject. It
// retries once if the connection broke, and once if the provisioner's key was
// replaced; a CA that was restarted with another key needs both. Each call gets a
// token of its own, because a failed call has used its token, too.
func (s *Signer) authorized(ctx context.Context, operation, subject string, claims tokenClaims,
	call func(ctx context.Context, c *connection, key *provisionerKey, token string) error,
) error {
	c, err := s.connected(ctx)
	if err != nil {
		return err
	}
	key, err := s.provisionerKey(ctx, c, nil)
	if err != nil {
		return err
	}
	try := func() error {
		token, err := key.token(s.url, operation, subject, claims)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
		defer cancel()
		return call(ctx, c, key, token)
	}
	err = try()
	if isBroken(err) && ctx.Err() == nil {
		err = try()
	}
	if statusOf(err) == http.StatusUnauthorized {
		newer, keyErr := s.provisionerKey(ctx, c, key)
		if keyErr != nil {
			return keyErr
		}
		if newer != key {
			key = newer
			err = try()
		}
	}
	return err
}

// certificates unwraps the client's type, in which a certificate may be nil.
func certificates(wrapped []api.Certificate) ([]*x509.Certificate, error) {
	if len(wrapped) == 0 {
		return nil, errNotStepCA
	}
	unwrapped := make([]*x509.Certificate, len(wrapped))
	for i, w := range wrapped {
		if w.Certificate == nil {
			return nil, errNotStepCA
		}
		unwrapped[i] = w.Certificate
	}
	return unwrapped, nil
}

// once runs f once for all concurrent callers that do the same. The context of the
// first caller does not end f. Each caller waits until its own context ends.
func once[T any](ctx context.Context, s *Signer, what string, f func(context.Context) (T, error)) (result T, err error) {
	done := s.calls.DoChan(what, func() (result any, err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout)
		defer cancel()
		defer panics.Recover(ctx, what, &err) // singleflight would end the process
		return f(ctx)
	})
	select {
	case r := <-done:
		result, _ = r.Val.(T)
		err = r.Err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		err = s.explain(ctx, what, err)
	}
	return result, err
}
