package ra

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/issuer"
)

func explained(t *testing.T, call string, err error) error {
	t.Helper()
	s := &Signer{url: &url.URL{Scheme: "https", Host: "ra.example"}}
	return s.explain(t.Context(), call, err)
}

// The node plugin gets the outcome that the registration authority decided.
func TestOutcomesTravel(t *testing.T) {
	for _, want := range issuer.Outcomes() {
		if want == issuer.OK {
			continue
		}
		err := explained(t, callSign, Status(want.RACode(), fmt.Errorf("%w: because of a test", want)))
		if got := issuer.OutcomeOf(err); got != want || !strings.Contains(err.Error(), "because of a test") {
			t.Errorf("sent %v, received %v: %v", want, got, err)
		}
	}
}

// What gRPC says about a connection, as a person reads it.
func TestSentencesOfGRPC(t *testing.T) {
	const url = "registration authority https://ra.example"
	for _, test := range []struct {
		err  error
		want string
	}{
		{status.Error(codes.Unavailable, `last connection error: connection error: desc = "transport: Error while dialing: dial tcp 192.0.2.1:8443: connect: connection refused"`),
			url + " cannot be reached: dial tcp 192.0.2.1:8443: connect: connection refused"},
		{status.Error(codes.Unavailable, "name resolver error: lookup ra.example: no such host"),
			url + " cannot be reached: lookup ra.example: no such host"},
		{status.Error(codes.DeadlineExceeded, `latest balancer error: connection error: desc = "transport: Error while dialing: dial tcp 192.0.2.1:8443: i/o timeout"`),
			url + " cannot be reached: dial tcp 192.0.2.1:8443: i/o timeout (no answer in time: do the pods of the registration authority run, and does something on the way drop packets?)"},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority"`),
			url + " is not trusted: tls: failed to verify certificate: x509: certificate signed by unknown authority"},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"),
			url + " cannot be reached: context deadline exceeded (no answer in time: do the pods of the registration authority run, and does something on the way drop packets?)"},
		// An older version, whose errors have no details, has answered.
		{status.Error(codes.NotFound, `the registration authority has no such issuer: "edge"`),
			url + `: the registration authority has no such issuer: "edge"`},
		{Status(codes.Unavailable, issuer.Unavailable.Because(errors.New("the CA https://ca.example cannot be reached: connection refused"))),
			url + ": the CA https://ca.example cannot be reached: connection refused"},
	} {
		if err := explained(t, callSign, test.err); err.Error() != test.want {
			t.Errorf("\n got %v\nwant %s", err, test.want)
		}
	}
}

// Older versions and proxies send only a gRPC code.
func TestOutcomesOfCodes(t *testing.T) {
	for _, test := range []struct {
		call string
		code codes.Code
		want issuer.Outcome
	}{
		{callSign, codes.PermissionDenied, issuer.Denied},
		{callSign, codes.InvalidArgument, issuer.Denied},
		{callSign, codes.Unauthenticated, issuer.NoPodToken},
		{callSign, codes.ResourceExhausted, issuer.Throttled},
		{callSign, codes.Internal, issuer.InvalidAnswer},
		{callSign, codes.NotFound, issuer.Unavailable},
		{callSign, codes.Unavailable, issuer.Unavailable},
		{callSign, codes.DeadlineExceeded, issuer.Unavailable},
		{callSign, codes.Unimplemented, issuer.Unavailable},
		{callRoots, codes.Unimplemented, issuer.Unavailable},
		{callRevoke, codes.Unimplemented, issuer.Unsupported},
		{callRevoke, codes.FailedPrecondition, issuer.Unsupported},
	} {
		err := explained(t, test.call, status.Error(test.code, "text"))
		if got := issuer.OutcomeOf(err); got != test.want || !strings.Contains(err.Error(), "https://ra.example") {
			t.Errorf("%s, %v: got %v, want %v: %v", test.call, test.code, got, test.want, err)
		}
	}
	if got := issuer.OutcomeOf(explained(t, callSign, errors.New("no status"))); got != issuer.Unavailable {
		t.Errorf("an error without a gRPC status: %v", got)
	}
}
