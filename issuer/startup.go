package issuer

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"k8s.io/klog/v2"
)

// ErrNotYet marks errors that are normal while the processes of a cluster start: the
// peer cannot be reached, or says that it is not ready. Others need a person, such as a
// wrong password.
var ErrNotYet = errors.New("not there yet")

// startupTime is how long a process waits for its issuers without logging errors.
const startupTime = time.Minute

// Startup tells how to log that an issuer has not answered yet. The node plugin, the
// registration authority and the CA may start at the same time, so failures that pass by
// themselves are no errors at first.
type Startup struct {
	began  time.Time
	reason string // that was logged last
}

// NewStartup returns the Startup of an issuer that was not called before.
func NewStartup() *Startup { return &Startup{began: time.Now()} }

// Waits tells whether the error is normal at this time.
func (s *Startup) Waits(err error) bool {
	return time.Since(s.began) < startupTime && isNotYet(err)
}

// Log logs an error that is normal at this time, each reason once. It returns false for
// other errors.
func (s *Startup) Log(ctx context.Context, err error) (logged bool) {
	if !s.Waits(err) {
		return false
	}
	if reason := err.Error(); reason != s.reason {
		s.reason = reason
		klog.FromContext(ctx).Info("Waiting for the issuer", "reason", reason)
	}
	return true
}

// isNotYet tells whether the error is ErrNotYet, or that of a connection that is not
// established, breaks, or gets no answer in time.
func isNotYet(err error) bool {
	for _, passing := range []error{ErrNotYet, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, passing) {
			return true
		}
	}
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		return true
	}
	if _, unresolved := errors.AsType[*net.DNSError](err); unresolved {
		return true
	}
	// A TLS alert of the peer is an OpError, too: "remote error".
	operation, ok := errors.AsType[*net.OpError](err)
	return ok && (operation.Op == "dial" || operation.Op == "read" || operation.Op == "write" || operation.Op == "proxyconnect")
}
