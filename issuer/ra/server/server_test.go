package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.step.sm/crypto/minica"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/test/reviews"
)

// served is a server that serves on loopback, at all addresses of 127.0.0.0/8.
type served struct {
	*Server
	t       testing.TB
	address string
	log     *buffer
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// serveFuzzed serves a server whose CA never signs, until the test ends.
func serveFuzzed(t testing.TB, change func(*Server)) *served {
	t.Helper()
	s := &served{Server: newFuzzed(t, &recording{}), t: t, log: &buffer{}}
	change(s.Server)
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuer.NewCSR(issuer.Request{DNSNames: []names.DNSName{names.Must(names.ParseDNSName("ra.shop.svc"))}}, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.SignCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	s.serving.current.Store(&tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Intermediate.Raw}, PrivateKey: key.Signer, Leaf: leaf})
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	s.address = net.JoinHostPort("127.0.0.1", port)
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(s.log)))
	ctx, stop := context.WithCancel(klog.NewContext(context.Background(), logger))
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// client calls from the address.
func (s *served) client(from string) rapb.RegistrationAuthorityClient {
	s.t.Helper()
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	connection, err := grpc.NewClient("passthrough:///"+s.address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { connection.Close() })
	return rapb.NewRegistrationAuthorityClient(connection)
}

// as returns a context with the caller's token.
func as(t testing.TB, token string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
}

// webRequest is a valid request for the pod web, with the token.
func webRequest(t testing.TB, podToken string) *rapb.SignRequest {
	t.Helper()
	dns := names.Must(names.ParseDNSName("web.shop"))
	id := names.Must(names.ParseURI("spiffe://cluster.local/ns/shop/sa/web"))
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuer.NewCSR(issuer.Request{CommonName: names.Must(names.ParseCommonName("web.shop")), DNSNames: []names.DNSName{dns}, URIs: []names.URI{id}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &rapb.SignRequest{
		Issuer: "default", Csr: csr.Raw, DurationSeconds: 3600, PodToken: podToken,
		Pod: &rapb.Pod{Namespace: web.Namespace, Name: web.Name, Uid: web.UID, ServiceAccount: web.ServiceAccount, Node: web.Node},
	}
}

// The server parses the CSR, and logs its names, only after it has authenticated the
// caller and the pod.
func TestCSRIsReadAfterTheTokens(t *testing.T) {
	const shown = `commonName="web.shop"`
	for name, test := range map[string]struct {
		pod, caller string
		code        codes.Code
		read        bool
	}{
		"both known":                      {"a.web.c", pluginToken, codes.Unavailable, true}, // recording never signs
		"unknown caller":                  {"a.web.c", reviews.Token(plugin, "unknown"), codes.Unauthenticated, false},
		"no token":                        {"a.web.c", "", codes.Unauthenticated, false},
		"a pod calls":                     {"a.web.c", reviews.Token(web, "web"), codes.PermissionDenied, false},
		"a pod with a forged claim calls": {"a.web.c", webAsPlugin, codes.PermissionDenied, false},
		"unknown pod":                     {"a.b.c", pluginToken, codes.Unauthenticated, false},
	} {
		s := serveFuzzed(t, func(*Server) {})
		_, err := s.client("127.0.0.1").Sign(as(t, test.caller), webRequest(t, test.pod))
		if log := s.log.String(); status.Code(err) != test.code || strings.Contains(log, shown) != test.read {
			t.Errorf("%s: error %v; the log:\n%s", name, err, log)
		}
	}
}

// panicking is a Reviewer that panics for one token.
type panicking struct {
	Reviewer
	token string
}

func (p panicking) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	if token.Reveal() == p.token {
		panic("a defect of a test")
	}
	return p.Reviewer.Review(ctx, token)
}

// A panic in any goroutine of a call fails only this call.
func TestPanicFailsTheCall(t *testing.T) {
	for _, token := range []string{"a.web.c", pluginToken} {
		s := serveFuzzed(t, func(s *Server) {
			s.reviewer = panicking{s.reviewer, token}
			s.callers.reviewer = s.reviewer
		})
		_, err := s.client("127.0.0.1").Sign(as(t, pluginToken), webRequest(t, "a.web.c"))
		if log := s.log.String(); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "defect of step-csi") || strings.Count(log, "Panic recovered") != 1 {
			t.Errorf("%s: error %v; the log:\n%s", token, err, log)
		}
	}
}

// A pod over its rate limit gets "throttled": its node plugin keeps serving other
// pods. A node over its rate limit gets "unavailable": the limit applies to all of
// its pods.
func TestRateLimitsNamePodOrNode(t *testing.T) {
	for name, test := range map[string]struct {
		limit  func(s *Server)
		reason string
	}{
		"of the pod":  {func(s *Server) { s.pods = newLimiter(Limit{Rate: 1e-9, Burst: 1}) }, "throttled"},
		"of the node": {func(s *Server) { s.nodes = newLimiter(Limit{Rate: 1e-9, Burst: 1}) }, "unavailable"},
	} {
		client := serveFuzzed(t, test.limit).client("127.0.0.1")
		_, _ = client.Sign(as(t, pluginToken), webRequest(t, "a.web.c"))
		_, err := client.Sign(as(t, pluginToken), webRequest(t, "a.web.c"))
		var reason string
		for _, detail := range status.Convert(err).Details() {
			reason = detail.(*errdetails.ErrorInfo).GetReason()
		}
		if status.Code(err) != codes.ResourceExhausted || reason != test.reason {
			t.Errorf("%s: reason %q: %v", name, reason, err)
		}
	}
}

// The largest request that a node plugin makes fits, and nothing much larger.
func TestLargestRequestFits(t *testing.T) {
	var dns []names.DNSName
	label := strings.Repeat("x", 60)
	for n := range 98 {
		dns = append(dns, names.Must(names.ParseDNSName(strings.Join([]string{label, label, label, strings.Repeat("y", 53-n%10), "shop", "svc"}, "."))))
	}
	key, err := issuer.RSA4096.Generate()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuer.NewCSR(issuer.Request{DNSNames: dns}, key)
	if err != nil {
		t.Fatal(err)
	}
	req := webRequest(t, "a."+strings.Repeat("b", maxToken-4)+".c")
	req.Csr = csr.Raw
	req.TemplateData = strings.Repeat(" ", issuer.MaxTemplateData)
	req.Subject = &rapb.Subject{StreetAddresses: slices.Repeat([]string{strings.Repeat("s", 128)}, names.MaxSubjectValues)}
	client := serveFuzzed(t, func(*Server) {}).client("127.0.0.1")
	if _, err := client.Sign(as(t, pluginToken), req); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "token of the pod") {
		t.Errorf("the largest request: %v", err)
	}
	req.Csr = make([]byte, 60<<10)
	if _, err := client.Sign(as(t, pluginToken), req); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("a request that is too large: %v", err)
	}
}

// A call that reaches gRPC on another way than through calls is rejected.
func TestCallWithoutCallerIsRejected(t *testing.T) {
	_, err := intercept(logr.Discard())(t.Context(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) {
		return nil, errors.New("handled")
	})
	if status.Code(err) != codes.Internal {
		t.Error(err)
	}
}

// Revocations of a node have a rate limit of their own: signing does not wait for them.
func TestRevocationsOfANodeAreLimited(t *testing.T) {
	client := serveFuzzed(t, func(s *Server) { s.revocations = newLimiter(Limit{Rate: 1e-9, Burst: 1}) }).client("127.0.0.1")
	for _, want := range []codes.Code{codes.InvalidArgument, codes.ResourceExhausted, codes.ResourceExhausted} {
		_, err := client.Revoke(as(t, pluginToken), &rapb.RevokeRequest{Issuer: "default"})
		if status.Code(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := client.Sign(as(t, pluginToken), webRequest(t, "a.web.c")); status.Code(err) != codes.Unavailable { // the CA never signs
		t.Error(err)
	}
}

// What an unauthenticated client sends is logged shortened, and seldom. The rest is
// counted.
func TestRejectionsAreLoggedSeldom(t *testing.T) {
	begin := time.Now()
	s := serveFuzzed(t, func(*Server) {})
	text := strings.Repeat("spam", 3000)
	const calls = 80
	var all sync.WaitGroup
	for range 10 {
		client := s.client("127.0.0.1")
		all.Go(func() {
			for range calls / 10 {
				_, _ = client.Sign(as(t, text), &rapb.SignRequest{Issuer: text})
			}
		})
	}
	all.Wait()
	log := s.log.String()
	if lines := strings.Count(log, "\n"); float64(lines) > 22+time.Since(begin).Seconds() || strings.Contains(log, "spamspam") || len(log) > lines*1000 {
		t.Errorf("%d lines, %d bytes:\n%s", lines, len(log), log)
	}
	if counted := testutil.ToFloat64(s.metrics.rejected.WithLabelValues(rejectedToken)); counted < 20 {
		t.Errorf("%v rejected calls are counted", counted)
	}
}

// The audit log has all that a pod requests: subject fields and template data decide about
// the certificate, too.
func TestAuditLogHasTheWholeRequest(t *testing.T) {
	last := `"z":"the last key"}`
	data := names.Must(issuer.ParseTemplateData(`{"a":"` + strings.Repeat("a", issuer.MaxTemplateData-len(`{"a":"",`+last)) + `",` + last))
	units := names.Must(names.ParseAll(names.ParseOrganization, "Web", "Api"))
	var entry auditEntry
	entry.addRequest(issuer.Request{Subject: names.Subject{OrganizationalUnits: units}, TemplateData: data})
	line := fmt.Sprint(entry...)
	for _, want := range []string{"organizationalUnits[Web Api]", last} {
		if !strings.Contains(line, want) {
			t.Errorf("%s is missing in %s", want, line)
		}
	}
}
