package driver

import (
	"context"
	"errors"
	"io/fs"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

var (
	// errInvalid: the request must be changed.
	errInvalid = errors.New("invalid request")
	// errNotFound: the volume is not known, or not mounted.
	errNotFound = errors.New("no such volume")
	// errConflict: the volume is published at another path.
	errConflict = errors.New("conflict")
	// errUncertain: what is mounted at the target cannot be told now. The kubelet
	// retries, and leaves the mount alone.
	errUncertain = errors.New("the state of the mount is not known")
)

// code is the gRPC code of an error, by the meanings that the CSI specification gives
// them. For the outcome of a call to an issuer, the outcome's table decides.
func code(err error) codes.Code {
	if outcome := issuer.OutcomeOf(err); outcome != issuer.Failed {
		return outcome.CSICode()
	}
	for _, c := range []struct {
		kind error
		code codes.Code
	}{
		{errInvalid, codes.InvalidArgument},
		{volume.ErrInvalid, codes.InvalidArgument},
		{errUncertain, codes.Unavailable},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errNotFound, codes.NotFound},
		{errConflict, codes.AlreadyExists},
		{volume.ErrConflict, codes.AlreadyExists},
		{fs.ErrNotExist, codes.NotFound}, // the target path's parent
	} {
		if errors.Is(err, c.kind) {
			return c.code
		}
	}
	return codes.Internal
}
