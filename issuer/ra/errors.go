package ra

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/proxies"
)

var errMalformed = fmt.Errorf("%w: there are no certificates where a registration authority sends some", issuer.InvalidAnswer)

// errorDomain is the domain of the ErrorInfo in the registration authority's errors,
// whose reason is the outcome. See https://google.aip.dev/193.
const errorDomain = "step-csi"

// Status is the gRPC status with the code, the error's text, and its outcome.
func Status(code codes.Code, err error) error {
	s := status.New(code, err.Error())
	detailed, failed := s.WithDetails(&errdetails.ErrorInfo{Domain: errorDomain, Reason: issuer.OutcomeOf(err).Label()})
	if failed != nil {
		return s.Err()
	}
	return detailed.Err()
}

// outcomeOf returns the outcome that the registration authority answered. Versions
// before 0.1 answer a code alone, and proxies do, too.
func outcomeOf(s *status.Status) issuer.Outcome {
	for _, detail := range s.Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != errorDomain {
			continue
		}
		for _, outcome := range issuer.Outcomes() {
			if outcome != issuer.OK && outcome.Label() == info.GetReason() {
				return outcome
			}
		}
	}
	switch s.Code() {
	case codes.PermissionDenied, codes.InvalidArgument:
		return issuer.Denied
	case codes.Unauthenticated:
		return issuer.NoPodToken
	case codes.ResourceExhausted:
		return issuer.Throttled
	case codes.FailedPrecondition:
		return issuer.Unsupported
	case codes.Internal:
		return issuer.InvalidAnswer
	}
	return issuer.Unavailable
}

// answer is an error in the registration authority's own words, with its outcome.
type answer struct {
	text    string
	outcome issuer.Outcome
}

// Error implements error.
func (a answer) Error() string { return a.text }

// Unwrap returns the outcome.
func (a answer) Unwrap() error { return a.outcome }

// explain says which call to which registration authority failed and why, and
// decides its outcome, unless that is known already. ctx is the caller's.
func (s *Signer) explain(ctx context.Context, call string, err error) error {
	if issuer.OutcomeOf(err) != issuer.Failed {
		return fmt.Errorf("registration authority %s: %s: %w", s.url, call, err)
	}
	reply, answered := status.FromError(err)
	if !answered {
		return fmt.Errorf("registration authority %s: %s: %w: %w", s.url, call, issuer.Unavailable, err)
	}
	a := answer{reply.Message(), outcomeOf(reply)}
	// gRPC puts a text about its retries before the message.
	if _, last, found := strings.Cut(a.text, "rpc error: code = "+reply.Code().String()+" desc = "); found {
		a.text = last
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		a.outcome = issuer.Canceled
	case reply.Code() == codes.Unimplemented && call == callRevoke:
		a = answer{"this version of the registration authority cannot revoke; upgrade it: " + reply.Message(), issuer.Unsupported}
	case reply.Code() == codes.Unimplemented:
		a.text = "this is no registration authority, or one of a version that does not know the call: " + a.text
	case strings.Contains(a.text, "has expired") || strings.Contains(a.text, "not valid yet") || strings.Contains(a.text, "not yet valid"):
		a.text += " (" + s.CompareClocks() + ")"
	case reply.Code() == codes.DeadlineExceeded:
		a.text += " (no answer in time: do the pods of the registration authority run, and does something on the way drop packets?)"
	}
	if len(reply.Details()) == 0 && a.outcome == issuer.Unavailable { // no answer
		a.text = proxies.Explain(errors.New(a.text), s.url).Error()
	}
	if a.outcome == issuer.Unavailable && !strings.HasPrefix(a.text, issuer.Unavailable.Error()) {
		a.text = issuer.Unavailable.Error() + ": " + a.text
	}
	return fmt.Errorf("registration authority %s: %s: %w", s.url, call, a)
}
