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

// explain says which registration authority failed and why, and decides the outcome,
// unless that is known already. ctx is the caller's. What the registration authority
// answered stands as it is: most often it is about the CA.
func (s *Signer) explain(ctx context.Context, call string, err error) error {
	if issuer.OutcomeOf(err) != issuer.Failed {
		return fmt.Errorf("%s: %w", s.name(), err)
	}
	reply, replied := status.FromError(err)
	if !replied {
		return issuer.Unavailable.Because(fmt.Errorf("%s: %w", s.name(), err))
	}
	a := answer{reply.Message(), outcomeOf(reply)}
	// gRPC puts a text about its retries before the message.
	if _, last, found := strings.Cut(a.text, "rpc error: code = "+reply.Code().String()+" desc = "); found {
		a.text = last
	}
	// gRPC itself uses these codes if there is no connection or no answer.
	answered := len(reply.Details()) > 0 || reply.Code() != codes.Unavailable && reply.Code() != codes.DeadlineExceeded
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		a = answer{call + ": " + issuer.Canceled.Error(), issuer.Canceled}
	case reply.Code() == codes.Unimplemented && call == callRevoke:
		a = answer{"this version of the registration authority cannot revoke; upgrade it: " + a.text, issuer.Unsupported}
	case reply.Code() == codes.Unimplemented:
		a.text = "this is no registration authority, or one of a version that does not know the call: " + a.text
	case answered:
		if strings.Contains(a.text, "has expired") || strings.Contains(a.text, "not valid yet") {
			a.text += " (" + s.CompareClocks() + ")"
		}
	default:
		return fmt.Errorf("%s %w", s.name(), answer{s.unreached(reply.Code(), a.text), a.outcome})
	}
	return fmt.Errorf("%s: %w", s.name(), a)
}

// name names the registration authority in errors.
func (s *Signer) name() string { return "registration authority " + s.url.String() }

// What gRPC puts before the reason why there is no connection.
var grpcPrefixes = []string{
	"latest balancer error: ", "last connection error: ", "last resolver error: ", "name resolver error: ", `connection error: desc = "`,
	"transport: Error while dialing: ", "error reading server preface: ",
}

const grpcHandshake = "transport: authentication handshake failed: "

// unreached says why the registration authority has not answered, by the text of gRPC.
func (s *Signer) unreached(code codes.Code, text string) string {
	for cut := true; cut; {
		cut = false
		for _, prefix := range grpcPrefixes {
			if rest, found := strings.CutPrefix(text, prefix); found {
				text, cut = strings.TrimSuffix(rest, `"`), true
			}
		}
	}
	text, handshake := strings.CutPrefix(text, grpcHandshake)
	problem := "cannot be reached: "
	if handshake {
		problem = "is not trusted: "
	}
	if strings.Contains(text, "has expired") || strings.Contains(text, "not yet valid") {
		text += " (" + s.CompareClocks() + ")"
	} else if code == codes.DeadlineExceeded && !handshake {
		text += " (no answer in time: do the pods of the registration authority run, and does something on the way drop packets?)"
	}
	return problem + proxies.Explain(errors.New(text), s.url).Error()
}
