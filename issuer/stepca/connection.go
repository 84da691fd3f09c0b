package stepca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"

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
	roots     []*x509.Certificate
	fetched   time.Time
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
		trusted := s.pins.Roots
		if trusted == nil {
			root, err := s.fetchPinnedRoot(ctx)
			if err != nil {
				return nil, err
			}
			trusted = []*x509.Certificate{root}
		}
		return s.connect(ctx, trusted)
	})
	if err != nil {
		return nil, s.explain("connect", err)
	}
	return c, nil
}

// refreshed fetches the roots again.
func (s *Signer) refreshed(ctx context.Context, old *connection) (*connection, error) {
	return once(ctx, s, "roots", func(ctx context.Context) (*connection, error) {
		if c := s.connection.Load(); c != old {
			return c, nil
		}
		fresh := *old
		if err := fresh.fetchRoots(ctx); err != nil {
			return nil, err
		}
		if !slices.EqualFunc(fresh.roots, old.roots, (*x509.Certificate).Equal) {
			old.transport.CloseIdleConnections()
			return s.connect(ctx, trust.Union(old.trusted, fresh.roots))
		}
		s.connection.Store(&fresh)
		return &fresh, nil
	})
}

// connect fetches the roots from a CA that is verified by the trusted ones, and
// from then on trusts all of them.
func (s *Signer) connect(ctx context.Context, trusted []*x509.Certificate) (*connection, error) {
	c, err := s.dialer(trusted)
	if err != nil {
		return nil, err
	}
	if err := c.fetchRoots(ctx); err != nil {
		c.transport.CloseIdleConnections()
		return nil, err
	}
	if all := trust.Union(trusted, c.roots); len(all) > len(trusted) {
		c.transport.CloseIdleConnections()
		roots, fetched := c.roots, c.fetched
		if c, err = s.dialer(all); err != nil {
			return nil, err
		}
		c.roots, c.fetched = roots, fetched
	}
	s.connection.Store(c)
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

// RoundTrip implements http.RoundTripper.
func (t limitedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.Transport.RoundTrip(r)
	if err == nil {
		response.Body = http.MaxBytesReader(nil, response.Body, maxAnswer)
	}
	return response, err
}

func (c *connection) fetchRoots(ctx context.Context) error {
	answer, err := c.client.RootsWithContext(ctx)
	if err != nil {
		return err
	}
	if c.roots, err = certificates(answer.Certificates); err != nil {
		return err
	}
	c.fetched = time.Now()
	return nil
}

// fetchPinnedRoot fetches the root with the configured fingerprint. Nothing
// secret is sent, and nothing but that root is accepted, so the connection need
// not be verified. (The client's own Root keeps that connection open and
// panics on an empty answer.)
func (s *Signer) fetchPinnedRoot(ctx context.Context) (*x509.Certificate, error) {
	transport := newTransport(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url.JoinPath("root", s.pins.Fingerprint).String(), nil)
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
		return nil, fmt.Errorf("%w %s; compare it with: step certificate fingerprint root_ca.crt", errNoSuchRoot, s.pins.Fingerprint)
	}
	var answer api.RootResponse
	if err := json.Unmarshal(body, &answer); err != nil || answer.RootPEM.Certificate == nil {
		return nil, errRubbish
	}
	if offered := trust.Fingerprint(answer.RootPEM.Certificate); offered != s.pins.Fingerprint {
		return nil, fmt.Errorf("%w %s; it offers %s instead", errNoSuchRoot, s.pins.Fingerprint, offered)
	}
	return answer.RootPEM.Certificate, nil
}
