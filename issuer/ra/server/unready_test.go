package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const wrongPassword = `the password does not open the key of provisioner "admin"`

// countingReviewer counts the tokens that it gets.
type countingReviewer struct {
	Reviewer
	tokens *atomic.Int64
}

func (r countingReviewer) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	r.tokens.Add(1)
	return r.Reviewer.Review(ctx, token)
}

// serveUnready serves a server that is not ready. ready makes it ready.
func serveUnready(t *testing.T) (s *served, tokens *atomic.Int64, ready func()) {
	t.Helper()
	tokens = &atomic.Int64{}
	s = serveFuzzed(t, func(s *Server) {
		s.reviewer = countingReviewer{s.reviewer, tokens}
		s.callers.reviewer = s.reviewer
	})
	own := s.serving.current.Swap(nil)
	s.serving.unready.because(t.Context(), s.serving.because(wrongPassword))
	return s, tokens, func() { s.serving.current.Store(own) }
}

// A node plugin gets the reason, and its token stays with it.
func TestUnreadyServerSaysWhy(t *testing.T) {
	s, tokens, _ := serveUnready(t)
	_, port, _ := net.SplitHostPort(s.address)
	var sent atomic.Int64
	signer, err := ra.New(ra.Config{
		URL: "https://localhost:" + port, Fingerprint: strings.Repeat("84a0", 16), Issuer: "default", Timeout: time.Minute,
		Token: func() ([]byte, error) { sent.Add(1); return []byte(pluginToken), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	err = signer.Connect(t.Context())
	want := `not ready; it says (unverified): issuer default, which signs the registration authority's own certificate: ` + wrongPassword
	if err == nil || !strings.HasSuffix(err.Error(), want) || issuer.OutcomeOf(err) != issuer.Unavailable {
		t.Errorf("got %v", err)
	}
	if tokens.Load() > 0 {
		t.Errorf("the server received a token")
	}
	if log := s.log.String(); strings.Contains(log, "Connection failed") {
		t.Errorf("the log:\n%s", log)
	}
}

// A client that does not verify the certificate sends its token to anyone. It gets no
// answer, and its token is not reviewed.
func TestUnreadyServerAcceptsNoCall(t *testing.T) {
	s, tokens, ready := serveUnready(t)
	early := s.client("127.0.0.1")
	calls := map[string]func(rapb.RegistrationAuthorityClient) error{
		"Sign": func(c rapb.RegistrationAuthorityClient) error {
			_, err := c.Sign(as(t, pluginToken), webRequest(t, "a.web.c"))
			return err
		},
		"Roots": func(c rapb.RegistrationAuthorityClient) error {
			_, err := c.Roots(as(t, pluginToken), &rapb.RootsRequest{Issuer: "default"})
			return err
		},
		"Revoke": func(c rapb.RegistrationAuthorityClient) error {
			_, err := c.Revoke(as(t, pluginToken), &rapb.RevokeRequest{Issuer: "default"})
			return err
		},
	}
	for name, call := range calls {
		if err := call(early); status.Code(err) != codes.Unavailable || len(status.Convert(err).Details()) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if tokens.Load() > 0 {
		t.Errorf("%d tokens were reviewed", tokens.Load())
	}
	if closed := testutil.ToFloat64(s.metrics.closed.WithLabelValues(closedUnready)); closed < float64(len(calls)) {
		t.Errorf("%v closed connections are counted", closed)
	}
	ready()
	// The next handshake has the certificate of the CA.
	if err := calls["Sign"](s.client("127.0.0.1")); tokens.Load() == 0 {
		t.Errorf("the ready server reviews no token: %v", err)
	}
}

// A TLS session from before the server became ready cannot be resumed: the resumption has
// no certificate.
func TestUnreadySessionsAreNotResumed(t *testing.T) {
	s, _, ready := serveUnready(t)
	// At that time the certificate has not expired, so that Go's client would resume.
	begin := func() time.Time { return time.Unix(0, 0) }
	config := &tls.Config{Time: begin, InsecureSkipVerify: true, NextProtos: []string{"h2"}, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	early, err := tls.Dial("tcp", s.address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	// The session tickets come before the server's first frame.
	if _, err := early.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ready()
	late, err := tls.Dial("tcp", s.address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if state := late.ConnectionState(); state.DidResume || state.PeerCertificates[0].Subject.CommonName == early.ConnectionState().PeerCertificates[0].Subject.CommonName {
		t.Errorf("resumed: %t", state.DidResume)
	}
}

// A connection from before the server became ready stays refused.
func TestUnreadyConnectionsStayRefused(t *testing.T) {
	s, tokens, ready := serveUnready(t)
	var becomeReady sync.Once
	connection, err := grpc.NewClient("passthrough:///"+s.address, grpc.WithTransportCredentials(following{
		credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}), func() { becomeReady.Do(ready) }}))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	_, err = rapb.NewRegistrationAuthorityClient(connection).Sign(as(t, pluginToken), webRequest(t, "a.web.c"))
	if status.Code(err) != codes.Unavailable || tokens.Load() > 0 {
		t.Errorf("%d tokens were reviewed: %v", tokens.Load(), err)
	}
}

// following are credentials that call a function after each handshake.
type following struct {
	credentials.TransportCredentials
	after func()
}

func (p following) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, info, err := p.TransportCredentials.ClientHandshake(ctx, authority, raw)
	p.after()
	return secure, info, err
}

// reason returns the text in the certificate that a client gets now, and whether the
// connection accepts calls.
func (s *serving) reason(t *testing.T) (reason string, accepts bool) {
	t.Helper()
	c := &connection{}
	certificate, err := s.certificate(&tls.ClientHelloInfo{Conn: c})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range certificate.Leaf.Extensions {
		if bytes.Contains(e.Value, []byte("issuer default")) {
			reason = string(e.Value)
		}
	}
	return reason, !c.unready.Load()
}

// Clients get the newest reason. A new certificate is made for each new reason, and not
// for each handshake or attempt.
func TestReasonIsTheNewest(t *testing.T) {
	if got, accepts := newFuzzed(t, &recording{}).serving.reason(t); !strings.Contains(got, "no answer yet") || accepts {
		t.Errorf("at first: %q", got)
	}
	keeping(t, true, func(t *testing.T, ca *stoppableSigner, s *serving) {
		expect := func(when, want string) {
			t.Helper()
			if got, accepts := s.reason(t); !strings.Contains(got, want) || accepts != (want == "") {
				t.Errorf("%s: %q, accepts calls: %t", when, got, accepts)
			}
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		expect("without the CA", "no route to host")
		first := s.unready.certificate.Load()
		for range 100 {
			s.reason(t)
			time.Sleep(time.Second)
		}
		if s.unready.certificate.Load() != first {
			t.Error("there is a new certificate for the same reason")
		}
		ca.down.Store(false)
		within(t, s, 20*time.Second)
		expect("with the CA", "")
		time.Sleep(14 * time.Hour) // before the renewal
		ca.down.Store(true)
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		expect("after the expiry", "no route to host")
		ca.down.Store(false)
		within(t, s, 20*time.Second)
		expect("with the CA again", "")
	})
	// The machine was suspended: there was no attempt.
	keeping(t, false, func(t *testing.T, _ *stoppableSigner, s *serving) {
		synctest.Wait()
		v := *s.validity.Load()
		v.NotAfter = time.Now()
		s.validity.Store(&v)
		if got, accepts := s.reason(t); !strings.Contains(got, "own certificate expired at") || accepts {
			t.Errorf("after the expiry: %q", got)
		}
	})
}

// failingSigner is a CA that fails with an error.
type failingSigner struct {
	*stoppableSigner
	err atomic.Pointer[error]
}

func (s *failingSigner) Sign(ctx context.Context, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	if err := s.err.Load(); err != nil {
		return nil, *err
	}
	return s.stoppableSigner.Sign(ctx, req)
}

// lateError is like that of net/http for a TLS handshake that takes too long.
type lateError struct{}

func (lateError) Error() string   { return "TLS handshake timeout" }
func (lateError) Timeout() bool   { return true }
func (lateError) Temporary() bool { return true }

// While everything starts at the same time, the log has each reason once, and no error. It
// has an error at once if a person is needed, and after a minute in any case.
func TestOwnCertificateStartsQuietly(t *testing.T) {
	for name, test := range map[string]struct {
		err       error
		after     time.Duration
		errors    bool
		waitLines int
	}{
		"refused":             {&net.OpError{Op: "dial", Err: errors.New("connection refused")}, 50 * time.Second, false, 1},
		"refused for longer":  {&net.OpError{Op: "dial", Err: errors.New("connection refused")}, 2 * time.Minute, true, 1},
		"the wrong password":  {errors.New(wrongPassword), 5 * time.Second, true, 0},
		"a TLS alert":         {&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, 5 * time.Second, true, 0},
		"no handshake":        {&url.Error{Op: "Get", URL: "https://ca", Err: lateError{}}, 50 * time.Second, false, 1},
		"the name is missing": {&net.DNSError{Err: "no such host", Name: "ca", IsNotFound: true}, 50 * time.Second, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := &failingSigner{stoppableSigner: newStoppableSigner(t)}
				failure := fmt.Errorf("%w: %w", issuer.Unavailable, test.err)
				ca.err.Store(&failure)
				s, err := newServing(Serving{Issuer: "default", Signer: ca, Names: []names.DNSName{names.Must(names.ParseDNSName("ra.example.com"))}, Lifetimes: issuer.Lifetimes{Default: 24 * time.Hour}})
				if err != nil {
					t.Fatal(err)
				}
				var lines buffer
				logger := funcr.New(func(_, args string) { fmt.Fprintln(&lines, args) }, funcr.Options{})
				ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
				done := make(chan struct{})
				go func() {
					defer close(done)
					s.keep(ctx)
				}()
				time.Sleep(test.after)
				synctest.Wait()
				log := lines.String()
				if strings.Contains(log, "Own certificate not issued") != test.errors || strings.Count(log, "Waiting for the issuer") != test.waitLines {
					t.Errorf("the log:\n%s", log)
				}
				ca.err.Store(nil)
				within(t, s, 20*time.Second)
				stop()
				<-done
			})
		})
	}
}
