package stepca

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// maxAnswer bounds the body of an answer, in bytes. The longest is the list of
// provisioners, at about 1 KiB each, 100 at a time.
const maxAnswer = 4 << 20

// connection is a verified way to the CA, with the roots that it answered.
type connection struct {
	client    *ca.Client
	transport *http.Transport
	trusted   []*x509.Certificate // what the CA's own serving certificate is verified by
	roots     issuer.Roots
}

// connected returns the kept connection, or makes one.
func (s *Signer) connected(ctx context.Context) (*connection, error) {
	if c := s.connection.Load(); c != nil {
		return c, nil
	}
	c, err := once(ctx, s, "connect", func(ctx context.Context) (*connection, error) {
		if c := s.connection.Load(); c != nil {
			return c, nil
		}
		return s.connect(ctx)
	})
	if err != nil {
		return nil, s.explain(ctx, "connect", err)
	}
	return c, nil
}

// connect fetches the roots from a CA that is verified by what is trusted so far,
// and from then on trusts them.
func (s *Signer) connect(ctx context.Context) (*connection, error) {
	if err := s.fetchPinnedRoots(ctx); err != nil && len(s.trust.Trusted()) == 0 {
		return nil, err
	}
	c, err := s.dialer(s.trust.Trusted())
	if err != nil {
		return nil, err
	}
	if err := s.fetchRoots(ctx, c); err != nil {
		c.transport.CloseIdleConnections()
		return nil, err
	}
	return s.follow(ctx, c), nil
}

// refreshed fetches the roots again.
func (s *Signer) refreshed(ctx context.Context, old *connection) (*connection, error) {
	c, err := once(ctx, s, "roots", func(ctx context.Context) (*connection, error) {
		if c := s.connection.Load(); c != old {
			return c, nil
		}
		fresh := *old
		if err := s.fetchRoots(ctx, &fresh); err != nil {
			return nil, err
		}
		return s.follow(ctx, &fresh), nil
	})
	if err != nil {
		return nil, s.explain(ctx, "get the roots", err)
	}
	return c, nil
}

// follow makes the connection the kept one. If the CA has other roots than those
// that it is verified by, they take their place, as soon as it is seen to be
// verified by them.
func (s *Signer) follow(ctx context.Context, c *connection) *connection {
	for _, trusted := range s.trust.Candidates(c.roots.Own) {
		next, err := c, error(nil)
		if !trust.Same(trusted, c.trusted) {
			next, err = s.verifiedBy(ctx, trusted)
		}
		if err != nil {
			continue
		}
		s.trust.Follow(trusted)
		if next != c {
			c.transport.CloseIdleConnections()
		}
		s.connection.Store(next)
		return next
	}
	s.connection.Store(c) // what was trusted is still good
	return c
}

// verifiedBy connects anew.
func (s *Signer) verifiedBy(ctx context.Context, trusted []*x509.Certificate) (*connection, error) {
	c, err := s.dialer(trusted)
	if err != nil {
		return nil, err
	}
	if err := s.fetchRoots(ctx, c); err != nil {
		c.transport.CloseIdleConnections()
		return nil, err
	}
	return c, nil
}

// dialer makes the client; it does not connect yet.
func (s *Signer) dialer(trusted []*x509.Certificate) (*connection, error) {
	transport := newTransport(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trust.Pool(trusted)})
	client, err := ca.NewClient(s.url.String(), ca.WithTransport(limitedTransport{transport}))
	if err != nil {
		return nil, err
	}
	return &connection{client: client, transport: transport, trusted: trusted}, nil
}

func newTransport(config *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		// step-ca closes an idle connection after 15 s. To be first avoids
		// sending a request into a connection that is just being closed.
		IdleConnTimeout: 12 * time.Second,
		// A CA whose machine is gone is noticed on a busy connection, too.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
	}
}

// limitedTransport is the CA's connection with a bound on what it may answer.
type limitedTransport struct{ *http.Transport }

// RoundTrip implements http.RoundTripper. An answer that says what failed, but is
// not step-ca's, comes from something before it.
func (t limitedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	response.Body = http.MaxBytesReader(nil, response.Body, maxAnswer)
	if response.StatusCode < http.StatusBadRequest {
		return response, nil
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil {
		return nil, err
	}
	if !json.Valid(body) {
		return nil, fmt.Errorf("%w, but that of something before it: HTTP %s", errRubbish, response.Status)
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

func (s *Signer) fetchRoots(ctx context.Context, c *connection) error {
	answer, err := c.client.RootsWithContext(ctx)
	if err != nil {
		return err
	}
	own, err := certificates(answer.Certificates)
	if err != nil {
		return err
	}
	c.roots = issuer.Roots{Own: own}
	if !s.config.Federation {
		return nil
	}
	federation, err := c.client.FederationWithContext(ctx)
	if err != nil {
		return err
	}
	if len(federation.Certificates) == 0 {
		return nil
	}
	c.roots.Federated, err = certificates(federation.Certificates)
	return err
}

// fetchPinnedRoots fetches the roots with the configured fingerprints, as far as
// the CA has them. One is enough: the others may be yet to come, or gone.
func (s *Signer) fetchPinnedRoots(ctx context.Context) error {
	var failed []error
	for _, fingerprint := range s.pins.Fingerprints {
		root, err := s.fetchPinnedRoot(ctx, fingerprint)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		s.trust.Pin([]*x509.Certificate{root})
	}
	return errors.Join(failed...)
}

// fetchPinnedRoot fetches the root with the configured fingerprint. Nothing
// secret is sent, and nothing but that root is accepted, so the connection need
// not be verified. (The client's own Root keeps that connection open and
// panics on an empty answer.)
func (s *Signer) fetchPinnedRoot(ctx context.Context, fingerprint string) (*x509.Certificate, error) {
	transport := newTransport(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url.JoinPath("root", fingerprint).String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := limitedTransport{transport}.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%w %s; compare it with: step certificate fingerprint root_ca.crt", errNoSuchRoot, fingerprint)
	}
	var answer api.RootResponse
	if err := json.Unmarshal(body, &answer); err != nil || answer.RootPEM.Certificate == nil {
		return nil, errRubbish
	}
	if offered := trust.Fingerprint(answer.RootPEM.Certificate); offered != fingerprint {
		return nil, fmt.Errorf("%w %s; it offers %s instead", errNoSuchRoot, fingerprint, offered)
	}
	return answer.RootPEM.Certificate, nil
}
