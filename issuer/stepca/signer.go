// Package stepca signs with a Smallstep step-ca: over its HTTP API, by one-time
// tokens of a JWK provisioner.
//
// A Signer needs no call to the CA to be made. It connects at the first use,
// keeps what it has learnt (roots, provisioner key, connection), and learns
// anew what the CA says has changed.
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
	"github.com/flexstack/step-csi/issuer/trust"
)

// defaultTimeout bounds a single call to the CA. A sign takes a few milliseconds;
// a CA that needs longer than this is not answering.
const defaultTimeout = 15 * time.Second

// Config is what a Signer needs.
type Config struct {
	// URL of the CA, https only. Its host is one of the CA's DNS names.
	URL string
	// Fingerprint is the SHA-256 of a root of the CA, in hexadecimal, or several
	// with commas between them. Either it or CABundle is needed.
	Fingerprint string
	// CABundle holds roots of the CA, in PEM.
	CABundle []byte
	// Provisioner is the name of the CA's JWK provisioner.
	Provisioner string
	// Password of the provisioner's key; called whenever that key is decrypted.
	Password func() ([]byte, error)
	// Federation adds the roots of the CAs that this one is federated with to its
	// own.
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

	flights    singleflight.Group // connecting, fetching the key, refreshing the roots
	connection atomic.Pointer[connection]
	key        atomic.Pointer[provisionerKey]
}

var (
	_ issuer.Signer  = (*Signer)(nil)
	_ issuer.Revoker = (*Signer)(nil)
)

// New refuses a configuration that cannot work, without asking the CA.
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

// Connect checks that the CA can be reached and trusted, and that the
// provisioner's key is there and the password opens it.
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

// Roots returns the roots of the CA, as it has last answered.
func (s *Signer) Roots(ctx context.Context) (issuer.Roots, error) {
	c, err := s.connected(ctx)
	if err != nil {
		return issuer.Roots{}, err
	}
	return c.roots, nil
}

// RefreshRoots asks the CA for its roots.
func (s *Signer) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	c := s.connection.Load()
	if c == nil {
		return s.Roots(ctx) // they are fresh
	}
	c, err := s.refreshed(ctx, c)
	if err != nil {
		return issuer.Roots{}, err
	}
	return c.roots, nil
}

// Trust is what the CA is verified by.
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

// authorized makes a call that takes a one-time token. A token is spent by a call
// that fails, too, so each try mints its own. There is another try when the
// connection broke, and one when the provisioner's key has been replaced; a CA that
// was restarted with another key takes both.
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
	// Relative to the CA's clock, so that a wrong one here does no harm.
	body.NotAfter.SetDuration(req.Request.Duration)

	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	answer, err := c.client.SignWithContext(ctx, body)
	if err != nil {
		return nil, err
	}
	return certificates(answer.CertChainPEM)
}

// Revoke revokes the certificate with the serial number; the rest is not needed.
// step-ca revokes passively: it does not renew the certificate, and lists it where
// it is configured to publish a list. It needs a database for that. See
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

// certificates unwraps the client's type, which may hold nil.
func certificates(wrapped []api.Certificate) ([]*x509.Certificate, error) {
	if len(wrapped) == 0 {
		return nil, errRubbish
	}
	unwrapped := make([]*x509.Certificate, len(wrapped))
	for i, w := range wrapped {
		if w.Certificate == nil {
			return nil, errRubbish
		}
		unwrapped[i] = w.Certificate
	}
	return unwrapped, nil
}

// once runs f for all concurrent callers with the same key. It does not end
// with the first caller's context, but each caller stops waiting with its own.
func once[T any](ctx context.Context, s *Signer, key string, f func(context.Context) (T, error)) (T, error) {
	result := s.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Timeout)
		defer cancel()
		return f(ctx)
	})
	select {
	case r := <-result:
		return r.Val.(T), r.Err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}
