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
	// errInvalid means that the caller must change the request.
	errInvalid = errors.New("invalid request")
	// errNotFound means that the volume is unknown or not mounted.
	errNotFound = errors.New("no such volume")
	// errConflict means that the volume is published at another path, or that another
	// volume is mounted at this path.
	errConflict = errors.New("conflict")
	// errUncertain means that the driver cannot determine the state of the mount now.
	// The kubelet retries and does not touch the mount.
	errUncertain = errors.New("the state of the mount is not known")
)

// code returns the gRPC code of an error, as the CSI specification defines the codes. The
// table in issuer/outcome.go decides the codes of failed calls to an issuer.
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
		{errUnshared, codes.FailedPrecondition},
		{errExhausted, codes.ResourceExhausted},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errNotFound, codes.NotFound},
		{errConflict, codes.AlreadyExists},
		{fs.ErrNotExist, codes.NotFound}, // the target path's parent
	} {
		if errors.Is(err, c.kind) {
			return c.code
		}
	}
	return codes.Internal
}
