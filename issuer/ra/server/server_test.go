package server

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// signAs calls Sign like gRPC does, with the pod's token and the caller's token. It
// returns the audit log and the error.
func signAs(t *testing.T, s *Server, podToken, callerToken string) (log string, err error) {
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
	req := &rapb.SignRequest{
		Issuer: "default", Csr: csr.Raw, DurationSeconds: 3600, PodToken: podToken,
		Pod: &rapb.Pod{Namespace: web.Namespace, Name: web.Name, Uid: web.UID, ServiceAccount: web.ServiceAccount, Node: web.Node},
	}
	text := &bytes.Buffer{}
	handle := func(ctx context.Context, req any) (any, error) { return s.Sign(ctx, req.(*rapb.SignRequest)) }
	_, err = intercept(textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(text))))(
		metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+callerToken)),
		req, &grpc.UnaryServerInfo{FullMethod: rapb.RegistrationAuthority_Sign_FullMethodName}, handle)
	return text.String(), err
}

// The server parses the CSR, and logs its names, only after it has authenticated the
// caller and the pod.
func TestCSRIsReadAfterTheTokens(t *testing.T) {
	const shown = `commonName="web.shop"`
	s := newFuzzed(t, &recording{})
	for name, test := range map[string]struct {
		pod, caller string
		code        codes.Code
		read        bool
	}{
		"both known":     {"a.web.c", "a.plugin.c", codes.Unavailable, true}, // recording never signs
		"unknown caller": {"a.web.c", "a.b.c", codes.Unauthenticated, false},
		"no token":       {"a.web.c", "", codes.Unauthenticated, false},
		"a pod calls":    {"a.web.c", "a.web.c", codes.PermissionDenied, false},
		"unknown pod":    {"a.b.c", "a.plugin.c", codes.Unauthenticated, false},
	} {
		log, err := signAs(t, s, test.pod, test.caller)
		if status.Code(err) != test.code || strings.Contains(log, shown) != test.read {
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
	for _, token := range []string{"a.web.c", "a.plugin.c"} {
		s := newFuzzed(t, &recording{})
		s.reviewer = panicking{s.reviewer, token}
		log, err := signAs(t, s, "a.web.c", "a.plugin.c")
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "defect of step-csi") || strings.Count(log, "Panic recovered") != 1 {
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
		s := newFuzzed(t, &recording{})
		test.limit(s)
		_, _ = signAs(t, s, "a.web.c", "a.plugin.c")
		_, err := signAs(t, s, "a.web.c", "a.plugin.c")
		var reason string
		for _, detail := range status.Convert(err).Details() {
			reason = detail.(*errdetails.ErrorInfo).GetReason()
		}
		if status.Code(err) != codes.ResourceExhausted || reason != test.reason {
			t.Errorf("%s: reason %q: %v", name, reason, err)
		}
	}
}
