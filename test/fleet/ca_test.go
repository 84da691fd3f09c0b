package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// callTimeout is how long the plugin waits for an answer of step-ca.
const callTimeout = 15 * time.Second

var (
	errRefused = fmt.Errorf("%w: connection refused", issuer.Unavailable)
	errSlow    = fmt.Errorf("%w: no answer in time", issuer.Unavailable)
)

// queueingCA answers one call after the other, each of which takes it as long. It
// does not notice that whoever asked has given up: what it then signs, it signs for
// nobody.
type queueingCA struct {
	takes time.Duration // a call

	mu     sync.Mutex
	away   bool      // it refuses connections
	hangs  bool      // it takes them, and never answers
	free   time.Time // when it has answered all so far
	roots  issuer.Roots
	asked  rate // for certificates
	signed rate // of these, those that came in time
	rooted rate // asked for roots
}

// set changes the CA.
func (ca *queueingCA) set(change func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	change()
}

// sign is a call for a certificate.
func (ca *queueingCA) sign(ctx context.Context) error {
	err := ca.answer(ctx, &ca.asked)
	if err == nil {
		ca.set(func() { ca.signed.count(time.Now()) })
	}
	return err
}

// answer waits until the call is answered, or given up.
func (ca *queueingCA) answer(ctx context.Context, asked *rate) error {
	now := time.Now()
	ca.mu.Lock()
	asked.count(now)
	if ca.away {
		ca.mu.Unlock()
		return errRefused
	}
	if ca.free.Before(now) {
		ca.free = now
	}
	ca.free = ca.free.Add(ca.takes)
	wait := ca.free.Sub(now)
	if ca.hangs {
		wait = callTimeout + 1
		ca.free = now
	}
	ca.mu.Unlock()

	timer := time.NewTimer(min(wait, callTimeout))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", issuer.Ended(ctx), ctx.Err())
	}
	if wait > callTimeout {
		return errSlow
	}
	return nil
}

// rootsOf is the CA as a node asks it for roots; certificates are signed by the
// model above.
type rootsOf struct {
	*queueingCA
	trust *trust.Store
}

var _ issuer.Signer = rootsOf{}

// Connect implements issuer.Signer.
func (rootsOf) Connect(context.Context) error { return nil }

// Sign implements issuer.Signer.
func (rootsOf) Sign(context.Context, issuer.SigningRequest) ([]*x509.Certificate, error) {
	return nil, errors.New("not asked here")
}

// Roots implements issuer.Signer.
func (r rootsOf) Roots(ctx context.Context) (issuer.Roots, error) { return r.RefreshRoots(ctx) }

// RefreshRoots implements issuer.Signer.
func (r rootsOf) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	if err := r.answer(ctx, &r.rooted); err != nil {
		return issuer.Roots{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.roots, nil
}

// Trust implements issuer.Signer.
func (r rootsOf) Trust() *trust.Store { return r.trust }
