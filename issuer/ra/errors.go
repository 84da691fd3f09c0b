package ra

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/issuer"
)

var errRubbish = errors.New("the answer is not a registration authority's")

// answer is an error that the authority has answered, in its own words.
type answer struct {
	text  string
	kinds []error
}

// Error implements error.
func (a answer) Error() string { return a.text }

// Unwrap tells what kind of error it is.
func (a answer) Unwrap() []error { return a.kinds }

// explain says which authority did not do what, and whether it refused or could
// not. ctx is the caller's: whose own time is over is told so.
func (s *Signer) explain(ctx context.Context, what string, err error) error {
	said, answered := status.FromError(err)
	if !answered {
		return fmt.Errorf("%s: %s: %w: %w", s.url, what, issuer.ErrUnavailable, err)
	}
	a := answer{text: plain(said)}
	switch said.Code() {
	case codes.PermissionDenied, codes.InvalidArgument:
		a.kinds = []error{issuer.ErrDenied}
	case codes.Unauthenticated:
		a.kinds = []error{issuer.ErrUnavailable, issuer.ErrNoToken}
	case codes.NotFound:
		a.kinds = []error{issuer.ErrUnavailable}
	case codes.FailedPrecondition:
		a.kinds = []error{issuer.ErrCannotRevoke}
	case codes.Unimplemented:
		a.kinds = []error{issuer.ErrCannotRevoke}
		a.text = "the authority is of an older version, which cannot revoke: " + said.Message()
	case codes.Internal:
		// The CA has answered something else than what was asked for.
		a.kinds = []error{issuer.ErrInvalidAnswer}
	default:
		a.kinds = []error{issuer.ErrUnavailable}
		a.text = issuer.ErrUnavailable.Error() + ": " + a.text
	}
	if said.Code() == codes.DeadlineExceeded {
		a.text += " (no answer in time: do the authority's pods run, and does something on the way drop what is sent to them?)"
	}
	if ctx.Err() != nil {
		a.kinds = append(a.kinds, ctx.Err())
	}
	return fmt.Errorf("%s: %s: %w", s.url, what, a)
}

// plain is what was said, without what gRPC says about having tried more than once.
func plain(said *status.Status) string {
	text := said.Message()
	if _, last, found := strings.Cut(text, "rpc error: code = "+said.Code().String()+" desc = "); found {
		return last
	}
	return text
}
