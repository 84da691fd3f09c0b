package driver

import (
	"context"
	"errors"
	"io/fs"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/issuer"
)

var (
	errNotFound = errors.New("no such volume")
	errConflict = errors.New("conflict")
)

// invalidError is about a request that must be changed to succeed.
type invalidError struct{ error }

func (e invalidError) Unwrap() error { return e.error }

func invalid(err error) error { return invalidError{err} }

// code is the gRPC code of an error, by the meanings that the CSI specification
// gives them. The kubelet does not take Canceled, DeadlineExceeded and
// Unavailable for final.
func code(err error) codes.Code {
	var asked invalidError
	switch {
	case err == nil:
		return codes.OK
	case errors.As(err, &asked):
		return codes.InvalidArgument
	case errors.Is(err, issuer.Denied):
		return codes.PermissionDenied
	case errors.Is(err, issuer.Unavailable): // also one that did not answer in time
		return codes.Unavailable
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, errNotFound):
		return codes.NotFound
	case errors.Is(err, errConflict):
		return codes.AlreadyExists
	case errors.Is(err, fs.ErrNotExist): // the target path's parent
		return codes.NotFound
	}
	return codes.Internal
}
