package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

func TestCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{fmt.Errorf("%w: no such key", errInvalid), codes.InvalidArgument},
		{fmt.Errorf("%w: no such key", volume.ErrInvalid), codes.InvalidArgument},
		{fmt.Errorf("%w: too many open files", errUncertain), codes.Unavailable},
		{fmt.Errorf("%w: private", errUnshared), codes.FailedPrecondition},
		// The pod is over its own rate limit: the kubelet retries.
		{fmt.Errorf("issuer default: %w: shop/web-0", issuer.Throttled), codes.ResourceExhausted},
		{fmt.Errorf("issuer default: %w: expired", issuer.NoPodToken), codes.Unavailable},
		{issuer.Denied, codes.PermissionDenied},
		{issuer.Unavailable, codes.Unavailable},
		// The CA has not answered in time.
		{fmt.Errorf("%w: %w", issuer.Unavailable, context.DeadlineExceeded), codes.Unavailable},
		// The kubelet no longer waits.
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errConflict, codes.AlreadyExists},
		{fs.ErrNotExist, codes.NotFound},
		{errors.New("anything else"), codes.Internal},
	} {
		if got := code(test.err); got != test.want {
			t.Errorf("%v: got %s, want %s", test.err, got, test.want)
		}
	}
}
