package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/issuer"
)

func TestCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{invalid(errors.New("no such key")), codes.InvalidArgument},
		{issuer.Denied, codes.PermissionDenied},
		{issuer.Unavailable, codes.Unavailable},
		// The CA has not answered in time.
		{fmt.Errorf("%w: %w", issuer.Unavailable, context.DeadlineExceeded), codes.Unavailable},
		// The kubelet waits no more.
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errConflict, codes.AlreadyExists},
		{fs.ErrNotExist, codes.NotFound},
		{errors.New("anything else"), codes.Internal},
	} {
		if got := code(test.err); got != test.want {
			t.Errorf("%v: %s instead of %s", test.err, got, test.want)
		}
	}
}
