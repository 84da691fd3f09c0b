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

// callTimeout is how long the authority waits for an answer from step-ca.
const callTimeout = 15 * time.Second

var (
	errRefused = fmt.Errorf("%w: connection refused", issuer.Unavailable)
	errSlow    = fmt.Errorf("%w: no answer in time", issuer.Unavailable)
)

// queueingCA answers one call at a time, and each call takes the same time. It does
// not notice that a caller has given up, so it also signs for callers that no longer
// wait.
type queueingCA struct {
	takes time.Duration // per call

	mu     sync.Mutex
	away   bool      // whether it refuses connections
	hangs  bool      // whether it accepts connections but never answers
	free   time.Time // when it will have answered all calls so far
	roots  issuer.Roots
	asked  rate // requests for certificates
	signed rate // answered within the caller's timeout
	rooted rate // requests for roots
}

// set changes the state of the CA.
func (ca *queueingCA) set(change func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	change()
}

// sign handles a request for a certificate.
func (ca *queueingCA) sign(ctx context.Context) error {
	err := ca.answer(ctx, &ca.asked)
	if err == nil {
		ca.set(func() { ca.signed.count(time.Now()) })
	}
	return err
}

// answer waits until the CA has answered the call, or the caller gives up.
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

// answerRoots handles a request for the roots.
func (ca *queueingCA) answerRoots(ctx context.Context) (issuer.Roots, error) {
	if err := ca.answer(ctx, &ca.rooted); err != nil {
		return issuer.Roots{}, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.roots, nil
}

// rootsOf is a peer as an issuer uses it to request roots. Certificates do not go
// through it: authority.sign models them.
type rootsOf struct {
	request func(context.Context) (issuer.Roots, error)
	trust   *trust.Store
}

var _ issuer.Signer = rootsOf{}

// Connect implements issuer.Signer.
func (rootsOf) Connect(context.Context) error { return nil }

// Sign implements issuer.Signer.
func (rootsOf) Sign(context.Context, issuer.SigningRequest) ([]*x509.Certificate, error) {
	return nil, errors.New("rootsOf does not sign")
}

// Roots implements issuer.Signer.
func (r rootsOf) Roots(ctx context.Context) (issuer.Roots, error) { return r.request(ctx) }

// RefreshRoots implements issuer.Signer.
func (r rootsOf) RefreshRoots(ctx context.Context) (issuer.Roots, error) { return r.request(ctx) }

// Trust implements issuer.Signer.
func (r rootsOf) Trust() *trust.Store { return r.trust }
