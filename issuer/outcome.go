package issuer

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
)

// Outcome is the result of a call to an issuer. The code that knows the outcome wraps
// it into the error, once. Either the error begins with the outcome's text, or it has the
// outcome without a text:
//
//	fmt.Errorf("%w: %w", issuer.Denied, err)
//	issuer.Unavailable.Because(err)
//
// An error never begins with the text of Unavailable: the CA or the registration authority
// may well be there, and refuse, such as because of a wrong password. The reason says what
// is the case. Everything else (gRPC codes, metrics, the schedule, the volume's condition)
// derives from the outcome, by the table below.
type Outcome int

// The outcomes. An error that wraps none of them is Failed.
const (
	// OK is the outcome of a call without an error.
	OK Outcome = iota
	// Denied: the policy or the CA refused the request. The same request gets the
	// same answer again.
	Denied
	// Unavailable: the issuer could not be reached, did not answer in time, or could
	// not do its work. A retry may succeed.
	Unavailable
	// Throttled: this one pod asks too often. Other pods are served.
	Throttled
	// NoPodToken: there is no valid token of the pod. The kubelet brings a new one
	// with its next call.
	NoPodToken
	// CallerRejected: the registration authority does not accept the node plugin
	// itself, whichever pod it asks for.
	CallerRejected
	// InvalidAnswer: the issuer answered something else than what was requested.
	InvalidAnswer
	// Canceled: the caller gave up: the volume is removed, the plugin stops, or the
	// kubelet hung up. It says nothing about the issuer.
	Canceled
	// Unsupported: the issuer can never do this, such as revoke without a database.
	Unsupported
	// Failed: a fault on this side of the call.
	Failed
)

// outcomes says what follows from each outcome.
var outcomes = [...]struct {
	// text begins the error message.
	text string
	// label is the value of the metrics' label "result".
	label string
	// csi is the code of a CSI call. The kubelet retries all of them, but takes
	// Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted as
	// "not final": it then leaves a mounted volume alone.
	csi codes.Code
	// ra is the code of a call to the registration authority.
	ra codes.Code
	// answered says that the issuer works.
	answered bool
	// down says that the issuer would not serve other pods of this node either.
	down bool
}{
	OK:             {"ok", "success", codes.OK, codes.OK, true, false},
	Denied:         {"denied", "denied", codes.PermissionDenied, codes.PermissionDenied, true, false},
	Unavailable:    {"unavailable", "unavailable", codes.Unavailable, codes.Unavailable, false, true},
	Throttled:      {"rate limit of the pod exceeded", "throttled", codes.ResourceExhausted, codes.ResourceExhausted, true, false},
	NoPodToken:     {"no valid token of the pod", "no_token", codes.Unavailable, codes.Unauthenticated, false, false},
	CallerRejected: {"the node plugin is not accepted", "caller_rejected", codes.Unavailable, codes.Unauthenticated, false, true},
	InvalidAnswer:  {"invalid answer", "invalid_answer", codes.Internal, codes.Internal, true, false},
	Canceled:       {"canceled", "canceled", codes.Canceled, codes.Canceled, false, false},
	Unsupported:    {"not supported", "unsupported", codes.FailedPrecondition, codes.FailedPrecondition, true, false},
	Failed:         {"failed", "other", codes.Internal, codes.Internal, false, false},
}

// Outcomes lists all outcomes.
func Outcomes() []Outcome {
	all := make([]Outcome, len(outcomes))
	for i := range all {
		all[i] = Outcome(i)
	}
	return all
}

// OutcomeOf returns the outcome that the error wraps: OK for nil, and Failed for an
// error that wraps none.
func OutcomeOf(err error) Outcome {
	if err == nil {
		return OK
	}
	var o Outcome
	if errors.As(err, &o) {
		return o
	}
	return Failed
}

// Ended is the outcome of a call without an answer: Canceled if the caller gave up,
// and Unavailable otherwise.
func Ended(ctx context.Context) Outcome {
	if errors.Is(ctx.Err(), context.Canceled) {
		return Canceled
	}
	return Unavailable
}

// Error implements error.
func (o Outcome) Error() string { return outcomes[o].text }

// Because returns an error with the outcome, and with the text of the reason alone.
func (o Outcome) Because(reason error) error { return because{o, reason} }

// because is an error with an outcome that its text does not have.
type because struct {
	outcome Outcome
	reason  error
}

// Error implements error.
func (b because) Error() string { return b.reason.Error() }

// Unwrap returns the outcome and the reason.
func (b because) Unwrap() []error { return []error{b.outcome, b.reason} }

// Label is the value of the metrics' label "result".
func (o Outcome) Label() string { return outcomes[o].label }

// CSICode is the gRPC code of a CSI call with this outcome.
func (o Outcome) CSICode() codes.Code { return outcomes[o].csi }

// RACode is the gRPC code of a call to the registration authority with this outcome.
func (o Outcome) RACode() codes.Code { return outcomes[o].ra }

// Answered tells whether the outcome shows that the issuer works.
func (o Outcome) Answered() bool { return outcomes[o].answered }

// IsDown tells whether the outcome shows that the issuer would not serve other pods
// of this node either.
func (o Outcome) IsDown() bool { return outcomes[o].down }
