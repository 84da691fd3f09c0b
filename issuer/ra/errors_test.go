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
