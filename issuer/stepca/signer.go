// Package stepca has a Smallstep step-ca sign: over its HTTP API, with one-time tokens
// of a JWK provisioner.
//
// New does not call the CA. A Signer connects at its first use, keeps the connection,
// the roots and the provisioner's key, and fetches them again when the CA rejects what
// it has.
package stepca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"
	"golang.org/x/crypto/ocsp"
	"golang.org/x/sync/singleflight"

	"github.com/flexstack/step-csi/issuer"
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
	// Provisioner is the name of the CA's JWK provisioner.
	Provisioner string
	// Password returns the password of the provisioner's key. It is called whenever
	// that key is decrypted.
	Password func() ([]byte, error)
	// Federation requests also the roots of the CAs that this CA is federated with.
	Federation bool
	// Timeout of one call to the CA; zero means 15 s.
	Timeout time.Duration
}

// Signer is an issuer.Signer.
type Signer struct {
	config Config
	url    *url.URL
	pins   trust.Pins
	trust  *trust.Store

	calls      singleflight.Group // connect, fetch the provisioner's key, refresh the roots
	connection atomic.Pointer[connection]
	key        atomic.Pointer[provisionerKey]
}

var (
	_ issuer.Signer  = (*Signer)(nil)
	_ issuer.Revoker = (*Signer)(nil)
)

// New checks the configuration. It does not call the CA.
func New(c Config) (*Signer, error) {
	u, err := trust.ParseURL(c.URL)
	if err != nil {
		return nil, err
	}
	s := &Signer{config: c, url: u}
	if s.config.Timeout == 0 {
		s.config.Timeout = defaultTimeout
	}
	if c.Provisioner == "" {
		return nil, errors.New("provisioner.name: name the CA's JWK provisioner, such as admin")
	}
	if c.Password == nil {
		return nil, errors.New("provisioner.passwordFile: name the file with the password of the provisioner's key")
	}
	if s.pins, err = trust.Parse(c.Fingerprint, c.CABundle); err != nil {
		return nil, err
	}
	s.trust = trust.NewStore(u.String(), s.pins)
	// Otherwise the client would read $STEPPATH/config/identity.json of the host.
	ca.DisableIdentity = true
	return s, nil
}

// Connect checks that the CA can be reached, is trusted, and has the provisioner, and
// that the password decrypts the provisioner's key.
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
	c := s.connection.Load()
	if c == nil {
		return s.Roots(ctx) // the first connection fetches them
	}
	c, err := s.refreshed(ctx, c)
	if err != nil {
		return issuer.Roots{}, err
	}
	return c.roots, nil
}

// Trust holds the roots that the CA is verified by.
func (s *Signer) Trust() *trust.Store { return s.trust }

// Sign has the CA sign the CSR.
func (s *Signer) Sign(ctx context.Context, req issuer.SigningRequest) (chain []*x509.Certificate, err error) {
	err = s.authorized(ctx, func(c *connection, key *provisionerKey) error {
		chain, err = s.signOnce(ctx, c, key, req)
		return err
	})
	if err != nil {
		return nil, s.explain(ctx, "sign", err)
	}
	return chain, nil
}

// authorized makes a call that needs a one-time token. It retries once if the
// connection broke, and once if the provisioner's key was replaced; a CA that was
// restarted with another key needs both. Each call mints a token of its own, because
// a failed call has used its token, too.
func (s *Signer) authorized(ctx context.Context, call func(*connection, *provisionerKey) error) error {
	c, err := s.connected(ctx)
	if err != nil {
		return err
	}
	key, err := s.provisionerKey(ctx, c, nil)
	if err != nil {
		return err
	}
	err = call(c, key)
	if isBroken(err) && ctx.Err() == nil {
		err = call(c, key)
	}
	if isUnauthorized(err) {
		newer, keyErr := s.provisionerKey(ctx, c, key)
		if keyErr != nil {
			return keyErr
		}
		if newer != key {
			err = call(c, newer)
		}
	}
	return err
}

func (s *Signer) signOnce(ctx context.Context, c *connection, key *provisionerKey, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	token, err := key.signToken(s.url, req)
	if err != nil {
		return nil, err
	}
	body := &api.SignRequest{CsrPEM: api.NewCertificateRequest(req.CSR), OTT: token}
	// Relative to the CA's clock: the clock here may differ.
	body.NotAfter.SetDuration(req.Request.Duration)

	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	answer, err := c.client.SignWithContext(ctx, body)
	if err != nil {
		return nil, err
	}
	return certificates(answer.CertChainPEM)
}

// Revoke revokes the certificate with the serial number; it needs nothing else of r.
// step-ca revokes passively: it no longer renews the certificate, and lists it in the
// CRL if it is configured to publish one. It needs a database for that. See
// https://smallstep.com/docs/step-ca/revocation/.
func (s *Signer) Revoke(ctx context.Context, r issuer.Revocation) error {
	err := s.authorized(ctx, func(c *connection, key *provisionerKey) error { return s.revokeOnce(ctx, c, key, r.Serial) })
	switch {
	case err == nil, isRevoked(err):
		return nil
	case hasNoDatabase(err):
		return fmt.Errorf("CA %s: revoke: %w: the CA has no database; give it one (db in its ca.json), or leave revoke-on-delete out",
			s.url, issuer.Unsupported)
	}
	return s.explain(ctx, "revoke", err)
}

func (s *Signer) revokeOnce(ctx context.Context, c *connection, key *provisionerKey, serial string) error {
	token, err := key.token(s.url, "revoke", serial, tokenClaims{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	_, err = c.client.RevokeWithContext(ctx, &api.RevokeRequest{
		Serial: serial, OTT: token, Passive: true,
		ReasonCode: ocsp.CessationOfOperation, Reason: "the pod is gone",
	}, nil)
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

// once runs f once for all concurrent callers with the same key. The context of the
// first caller does not end f. Each caller waits until its own context ends.
func once[T any](ctx context.Context, s *Signer, key string, f func(context.Context) (T, error)) (T, error) {
	result := s.calls.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout)
		defer cancel()
		return recovering(ctx, key, f)
	})
	select {
	case r := <-result:
		return r.Val.(T), r.Err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// recovering recovers panics of f. Otherwise singleflight ends the process.
func recovering[T any](ctx context.Context, what string, f func(context.Context) (T, error)) (result T, err error) {
	defer panics.Recover(ctx, what, &err)
	return f(ctx)
}
