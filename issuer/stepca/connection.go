package stepca

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/clock"
	"github.com/flexstack/step-csi/issuer/proxies"
	"github.com/flexstack/step-csi/issuer/trust"
)

// maxAnswer bounds the body of an answer, in bytes. The longest answer is a page of
// 100 provisioners of about 1 KiB each.
const maxAnswer = 4 << 20

// connection is a verified connection to the CA, with the roots that the CA answered.
type connection struct {
	client    *ca.Client
	transport *http.Transport
	trusted   []*x509.Certificate // roots that the CA's serving certificate is verified by
	roots     issuer.Roots
}

// connected returns the connection, and connects if there is none.
func (s *Signer) connected(ctx context.Context) (*connection, error) {
	if c := s.connection.Load(); c != nil {
		return c, nil
	}
	return once(ctx, s, "connect", func(ctx context.Context) (*connection, error) {
		if c := s.connection.Load(); c != nil {
			return c, nil
		}
		// One pinned root is enough: the others may be roots of the past or of the future.
		var failed []error
		for _, fingerprint := range s.pins.Fingerprints {
			if err := s.fetchPinnedRoot(ctx, fingerprint); err != nil {
				failed = append(failed, err)
			}
		}
		if len(failed) > 0 && len(s.trust.Trusted()) == 0 {
			return nil, joined(failed)
		}
		c, err := s.dial(ctx, s.trust.Trusted())
		if err != nil {
			return nil, err
		}
		return s.follow(ctx, c), nil
	})
}

// follow stores the connection. If the CA answered other roots than those that it is
// verified by, follow first connects again with these. If they verify the CA, they
// replace the trusted roots. (If the configuration has roots for the server, only pinned
// roots are trusted, and the connection does not depend on them.)
func (s *Signer) follow(ctx context.Context, c *connection) *connection {
	for _, trusted := range s.trust.Candidates(c.roots.Own) {
		next := c
		if s.config.ServerRoots == nil && !trust.Same(trusted, c.trusted) {
			var err error
			if next, err = s.dial(ctx, trusted); err != nil {
				continue
			}
			c.transport.CloseIdleConnections()
		}
		s.trust.Follow(trusted, c.roots.Asked)
		s.connection.Store(next)
		return next
	}
	s.connection.Store(c) // the trusted roots stay
	return c
}

// dial connects to the CA, which the trusted roots verify unless the configuration has
// other roots for its server, and fetches its roots.
func (s *Signer) dial(ctx context.Context, trusted []*x509.Certificate) (*connection, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    s.config.ServerRoots,
		// Without ServerRoots, VerifyConnection verifies the certificate, also if this
		// machine's clock is behind.
		InsecureSkipVerify: s.config.ServerRoots == nil,
		VerifyConnection: func(state tls.ConnectionState) error {
			if s.config.ServerRoots == nil {
				if err := trust.VerifyServer(state.PeerCertificates, s.url.Hostname(), trusted); err != nil {
					return err
				}
			}
			if s.config.Shown != nil {
				s.config.Shown(state.PeerCertificates[0])
			}
			return nil
		},
	}
	transport := s.newTransport(config)
	client, err := ca.NewClient(s.url.String(), ca.WithTransport(limitedTransport{transport, &s.clock}))
	if err != nil {
		return nil, err
	}
	c := &connection{client: client, transport: transport, trusted: trusted}
	if err := s.fetchRoots(ctx, c); err != nil {
		transport.CloseIdleConnections()
		return nil, err
	}
	return c, nil
}

func (s *Signer) newTransport(config *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:               proxies.FromEnvironment,
		DialContext:         (&net.Dialer{Timeout: s.dialTimeout}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: cmp.Or(s.dialTimeout, 10*time.Second),
		ForceAttemptHTTP2:   true,
		// Shorter than step-ca's 15 s, so that no request is sent over a connection that
		// step-ca is closing.
		IdleConnTimeout: 12 * time.Second,
		// Pings detect a dead peer, also while calls wait for answers.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
	}
}

// limitedTransport bounds the size of answers, and compares the clocks.
type limitedTransport struct {
	*http.Transport
	clock *clock.Comparison
}

// RoundTrip implements http.RoundTripper. step-ca's errors are JSON: an error in
// another format comes from something in front of step-ca, such as a proxy.
func (t limitedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := time.Now()
	response, err := t.Transport.RoundTrip(r)
	if err != nil {
		return nil, proxies.Explain(err, r.URL)
	}
	t.clock.Observe(response.Header.Get("Date"), sent)
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
		return nil, proxies.Explain(fmt.Errorf("%w, but from something in front of it: HTTP %s", errNotStepCA, response.Status), r.URL)
	}
	response.StatusCode, body = namedRefusal(response.StatusCode, body)
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

// fetchRoots replaces the roots of the connection. A failure changes nothing.
func (s *Signer) fetchRoots(ctx context.Context, c *connection) error {
	roots := issuer.Roots{Asked: time.Now()}
	answer, err := c.client.RootsWithContext(ctx)
	if err != nil {
		return err
	}
	if roots.Own, err = certificates(answer.Certificates); err != nil {
		return err
	}
	if s.config.Federation {
		federation, err := c.client.FederationWithContext(ctx)
		if err != nil {
			return err
		}
		if len(federation.Certificates) > 0 {
			if roots.Federated, err = certificates(federation.Certificates); err != nil {
				return err
			}
		}
	}
	if roots, err = roots.Accept(s.pins); err != nil {
		return fmt.Errorf("%s: %w", s.name(), err)
	}
	c.roots = roots
	return nil
}

// fetchPinnedRoot fetches the root with the fingerprint, and trusts it. The connection
// is verified only if the configuration has roots for the server: the request has no
// secret, and no other root is accepted. (The client's own Root keeps such a connection
// open, and panics on an empty answer.)
func (s *Signer) fetchPinnedRoot(ctx context.Context, fingerprint string) error {
	transport := s.newTransport(&tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: s.config.ServerRoots, InsecureSkipVerify: s.config.ServerRoots == nil,
	})
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url.JoinPath("root", fingerprint).String(), nil)
	if err != nil {
		return err
	}
	response, err := limitedTransport{transport, &s.clock}.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode == http.StatusNotFound {
		return fmt.Errorf("%s has no root with the fingerprint %s; compare it with: step certificate fingerprint root_ca.crt", s.name(), fingerprint)
	}
	var answer api.RootResponse
	if err := json.Unmarshal(body, &answer); err != nil || answer.RootPEM.Certificate == nil {
		return errNotStepCA
	}
	if offered := trust.Fingerprint(answer.RootPEM.Certificate); offered != fingerprint {
		return fmt.Errorf("%s has no root with the fingerprint %s; it offers %s instead", s.name(), fingerprint, offered)
	}
	s.trust.Pin([]*x509.Certificate{answer.RootPEM.Certificate})
	return nil
}
