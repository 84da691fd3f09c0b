// Package ra is the client of the registration authority, which package server
// implements. A node that uses it needs no credential of the CA: it sends two
// service-account tokens, that of the pod and that of the node plugin itself.
//
// rapb/ra.proto describes the protocol.
package ra

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/clock"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/issuer/trust"
)

// defaultTimeout bounds a call, including its retries at other replicas.
const defaultTimeout = 20 * time.Second

// Config is what a Signer needs.
type Config struct {
	// URL of the registration authority, https only. Its host is a DNS name in the
	// certificate of the registration authority. Each of its addresses is a replica.
	URL string
	// Fingerprint is the SHA-256 of a root of the CA that signed the certificate of the
	// registration authority, in hexadecimal; several are separated by commas. Either
	// Fingerprint or CABundle is needed.
	Fingerprint string
	// CABundle holds roots of that CA, in PEM.
	CABundle []byte
	// Pinned means that no other root is used, whatever the registration authority
	// answers: not to verify it, not for pods, and not to check issued certificates.
	Pinned bool
	// RootsFingerprint or RootsCABundle are the pinned roots for pods and to check issued
	// certificates, if another CA than that of the registration authority signs those.
	RootsFingerprint string
	RootsCABundle    []byte
	// Issuer is the name of the issuer in the configuration of the registration
	// authority.
	Issuer string
	// Token returns the service-account token of the node plugin's own pod.
	Token func() ([]byte, error)
	// Timeout of a call; zero means 20 s.
	Timeout time.Duration
}

// Signer is an issuer.Signer.
type Signer struct {
	config     Config
	url        *url.URL
	pins       trust.Pins // of the registration authority
	rootPins   trust.Pins // of the CA
	trust      *trust.Store
	clock      clock.Comparison                    // with that of the registration authority
	presented  atomic.Pointer[[]*x509.Certificate] // the certificates of the last handshake that was verified
	connection *grpc.ClientConn
	client     rapb.RegistrationAuthorityClient
	unready    atomic.Pointer[notReady] // of the last replica that said so

	intermediates atomic.Pointer[[]*x509.Certificate] // of the last answer

	mu       sync.Mutex
	roots    issuer.Roots // the newest that were answered
	followed time.Time    // when the CA was asked for the roots that trust follows
}

var (
	_ issuer.Signer        = (*Signer)(nil)
	_ issuer.Clock         = (*Signer)(nil)
	_ issuer.Intermediates = (*Signer)(nil)
)

// New checks the configuration. It does not call the registration authority.
func New(c Config) (*Signer, error) {
	u, err := trust.ParseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if c.Issuer == "" {
		return nil, errors.New("provisioner.name: name an issuer of the registration authority, such as default")
	}
	if c.Token == nil {
		return nil, errors.New("provisioner.tokenFile: name the file with the service-account token of the node plugin's own pod")
	}
	c.Timeout = cmp.Or(c.Timeout, defaultTimeout)
	s := &Signer{config: c, url: u}
	if s.pins, err = trust.Parse(c.Fingerprint, c.CABundle); err != nil {
		return nil, err
	}
	s.rootPins = s.pins
	if c.RootsFingerprint != "" || len(c.RootsCABundle) > 0 {
		if s.rootPins, err = trust.Parse(c.RootsFingerprint, c.RootsCABundle); err != nil {
			return nil, fmt.Errorf("roots.%w", err)
		}
	}
	s.pins.Only, s.rootPins.Only = c.Pinned, c.Pinned
	s.trust = trust.NewStore(u.String(), s.pins)
	if s.connection, err = s.dial(net.DefaultResolver.LookupHost); err != nil {
		return nil, err
	}
	s.client = rapb.NewRegistrationAuthorityClient(s.connection)
	return s, nil
}

// Close closes the connections to all replicas. The Signer cannot be used afterwards.
func (s *Signer) Close() { s.connection.Close() }

// Connect checks that the registration authority can be reached, is trusted, has the
// issuer, and accepts this node plugin.
func (s *Signer) Connect(ctx context.Context) error {
	_, err := s.RefreshRoots(ctx)
	return err
}

// The calls, as error messages name them.
const (
	callSign   = "sign"
	callRoots  = "get the roots"
	callRevoke = "revoke"
	callReport = "report to the owner of a pod"
)

// call makes a call with the token of the plugin's own pod, bounded in time. The
// kubelet replaces the token's file, so it is read each time; the outcome is
// CallerRejected if it cannot be read.
func (s *Signer) call(ctx context.Context, name string, do func(context.Context, ...grpc.CallOption) error) error {
	token, err := s.config.Token()
	if err != nil {
		return s.explain(ctx, name, fmt.Errorf("%w: read the token of the node plugin's own pod: %w", issuer.CallerRejected, err))
	}
	limited, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	// The registration authority states the time of its answer.
	var headers, trailers metadata.MD
	sent := time.Now()
	err = do(limited, grpc.PerRPCCredentials(bearer(strings.TrimSpace(string(token)))), grpc.Header(&headers), grpc.Trailer(&trailers))
	for _, date := range slices.Concat(trailers.Get("date"), headers.Get("date")) {
		s.clock.Observe(date, sent)
	}
	if err == nil {
		return nil
	}
	if unanswered := s.explainUnanswered(ctx, name, err); unanswered != nil {
		return unanswered
	}
	return s.explain(ctx, name, err)
}

// CompareClocks implements issuer.Clock.
func (s *Signer) CompareClocks() string { return s.clock.Describe("registration authority") }

// Sign has the registration authority sign the CSR. Without a valid token of the pod
// it does not call: the outcome is NoPodToken.
func (s *Signer) Sign(ctx context.Context, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	token, pod := req.Applicant.Token, req.Applicant.Pod
	// The clock of the API server decides, and this machine's may be ahead.
	if now := time.Now(); !token.ValidAt(now.Add(-clock.Tolerance)) {
		return nil, fmt.Errorf("%w to show to the registration authority %s: %s", issuer.NoPodToken, s.url, token.Missing(now))
	}
	request := &rapb.SignRequest{
		Issuer:          s.config.Issuer,
		Csr:             req.CSR.Raw,
		DurationSeconds: seconds(req.Request.Duration),
		DefaultLifetime: req.Request.Duration == 0,
		PodToken:        token.Reveal(),
		Pod: &rapb.Pod{
			Namespace: pod.Namespace, Name: pod.Name, Uid: pod.UID, ServiceAccount: pod.ServiceAccount, Node: pod.Node,
		},
	}
	setSubject(request, req.Request)
	var chain []*x509.Certificate
	err := s.call(ctx, callSign, func(ctx context.Context, options ...grpc.CallOption) error {
		s.awaitReplica(ctx)
		sent := time.Now()
		answer, err := s.client.Sign(ctx, request, options...)
		if err != nil {
			return err
		}
		if (request.Subject != nil || request.TemplateData != "") && !answer.GetSubjectRead() {
			return errSubjectIgnored
		}
		if chain, err = certificates(answer.GetChain()); err != nil {
			return err
		}
		_, err = s.takeRoots(answer, sent)
		return err
	})
	if err != nil {
		return nil, err
	}
	return chain, nil
}

// earlierLifetime is what a registration authority of an earlier version is asked for if
// no lifetime was requested: its default.
const earlierLifetime = 24 * time.Hour

// seconds rounds down, but not to zero.
func seconds(d time.Duration) int64 {
	return max(int64(cmp.Or(d, earlierLifetime)/time.Second), 1)
}

// Roots returns the newest roots of the CA that the registration authority answered.
func (s *Signer) Roots(ctx context.Context) (issuer.Roots, error) {
	s.mu.Lock()
	known := s.roots
	s.mu.Unlock()
	if len(known.Own) > 0 {
		return known, nil
	}
	return s.RefreshRoots(ctx)
}

// RefreshRoots requests the roots of the CA, and also the roots of the registration
// authority's own certificate, which may change. It returns the newest roots that it
// knows: a replica may answer older ones.
func (s *Signer) RefreshRoots(ctx context.Context) (roots issuer.Roots, err error) {
	err = s.call(ctx, callRoots, func(ctx context.Context, options ...grpc.CallOption) error {
		sent := time.Now()
		answer, err := s.client.Roots(ctx, &rapb.RootsRequest{Issuer: s.config.Issuer}, options...)
		if err != nil {
			return err
		}
		if roots, err = s.takeRoots(answer, sent); err != nil {
			return err
		}
		own, err := certificates(answer.GetAuthorityRoots())
		if err != nil {
			return err
		}
		s.followRoots(own, sent, answer.GetAuthorityRootsAgeMilliseconds())
		if len(answer.GetIntermediates()) == 0 {
			return nil // an authority of an earlier version, or a CA that does not say
		}
		intermediates, err := certificates(answer.GetIntermediates())
		if err == nil {
			s.intermediates.Store(&intermediates)
		}
		return err
	})
	return roots, err
}

// Intermediates implements issuer.Intermediates. It does not call the registration authority:
// RefreshRoots does.
func (s *Signer) Intermediates(context.Context) ([]*x509.Certificate, error) {
	if answered := s.intermediates.Load(); answered != nil {
		return *answered, nil
	}
	return nil, nil
}

// takeRoots takes the roots of an answer to a call, unless newer ones are known, and
// returns the newest.
func (s *Signer) takeRoots(answer answeredRoots, sent time.Time) (roots issuer.Roots, err error) {
	if roots.Own, err = certificates(answer.GetRoots()); err != nil {
		return issuer.Roots{}, err
	}
	if len(answer.GetFederatedRoots()) > 0 {
		if roots.Federated, err = certificates(answer.GetFederatedRoots()); err != nil {
			return issuer.Roots{}, err
		}
	}
	if roots, err = roots.Accept(s.rootPins); err != nil {
		return issuer.Roots{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, newer := askedAfter(s.roots.Asked, sent, answer.GetRootsAgeMilliseconds())
	// An earlier process may have seen the roots change. A second is for network delays:
	// the same replica may answer the same roots again. A change in the future means that
	// this machine's clock was set back: it tells nothing about the answer.
	if changed := s.trust.State().Since; len(s.roots.Own) == 0 && asked.Before(changed.Add(-time.Second)) && !changed.After(time.Now()) {
		return issuer.Roots{}, issuer.Unavailable.Because(fmt.Errorf("the replica that answered got its roots from the CA at %s, but the roots changed at %s; another replica may have newer ones",
			asked.UTC().Format(time.RFC3339), changed.UTC().Format(time.RFC3339)))
	}
	if newer {
		roots.Asked = asked
		s.roots = roots
	}
	return s.roots, nil
}

// followRoots makes the roots of an answer those that the registration authority is
// verified by, if they are newer and verify the certificate that it has now.
func (s *Signer) followRoots(answered []*x509.Certificate, sent time.Time, age uint32) {
	presented := s.presented.Load()
	if presented == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, newer := askedAfter(s.followed, sent, age)
	if !newer {
		return
	}
	for _, trusted := range s.trust.Candidates(answered) {
		if s.verifyBy(trusted, *presented) == nil {
			s.trust.Follow(trusted, asked)
			s.followed = asked
			return
		}
	}
}

// askedAfter tells whether a CA was certainly asked for the roots of an answer after the
// known time. The answer was sent between sent, the time of the call, and now; the age in
// it says how long before that its sender had asked the CA. So the CA was asked between
// sent-age and now-age. askedAfter returns the later of these times, to compare the next
// answers with.
//
// An age needs no clocks that agree, unlike a time: neither the clocks of replicas, nor
// that of the node. Both times are by the node's monotonic clock. An answer without an
// age, of an earlier version, counts as asked during the call.
func askedAfter(known, sent time.Time, ageMilliseconds uint32) (asked time.Time, after bool) {
	age := time.Duration(ageMilliseconds) * time.Millisecond // rounded down
	return time.Now().Add(-age), sent.Add(-age - time.Millisecond).After(known)
}

// Trust holds the roots that the registration authority is verified by.
func (s *Signer) Trust() *trust.Store { return s.trust }

// verify replaces the verification of crypto/tls, which has neither fingerprints nor
// changing roots. It runs in a goroutine of gRPC.
func (s *Signer) verify(state tls.ConnectionState) (err error) {
	defer panics.Recover(context.Background(), "verify the registration authority", &err)
	presented := state.PeerCertificates
	if len(presented) == 0 {
		return errors.New("the registration authority sends no certificate")
	}
	if err := s.refusal(presented[0]); err != nil {
		return err
	}
	trusted := trust.Union(s.trust.Trusted(), s.pins.Among(presented))
	if len(trusted) == 0 {
		return fmt.Errorf("the registration authority has no root with the fingerprint %s", strings.Join(s.pins.Fingerprints, " or "))
	}
	if err = s.verifyBy(trusted, presented); err == nil {
		s.trust.Pin(presented)
		s.presented.Store(&presented)
	}
	return err
}

func (s *Signer) verifyBy(trusted, presented []*x509.Certificate) error {
	return trust.VerifyServer(presented, s.url.Hostname(), trusted)
}

// answeredRoots is a SignResponse or a RootsResponse.
type answeredRoots interface {
	GetRoots() [][]byte
	GetFederatedRoots() [][]byte
	GetRootsAgeMilliseconds() uint32
}

func certificates(all [][]byte) ([]*x509.Certificate, error) {
	if len(all) == 0 {
		return nil, errMalformed
	}
	parsed := make([]*x509.Certificate, len(all))
	for i, der := range all {
		var err error
		if parsed[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
	}
	return parsed, nil
}

// Raw returns the certificates in DER.
func Raw(all []*x509.Certificate) [][]byte {
	raw := make([][]byte, len(all))
	for i, certificate := range all {
		raw[i] = certificate.Raw
	}
	return raw
}
