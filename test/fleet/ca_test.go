package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// callTimeout is how long the caller waits for an answer from step-ca.
const callTimeout = 15 * time.Second

// queueingCA is a step-ca.
type queueingCA struct {
	queue
	roots  issuer.Roots
	asked  rate // requests for certificates
	signed rate // answered within the caller's timeout
	rooted rate // requests for roots
}

// sign handles a request for a certificate.
func (ca *queueingCA) sign(ctx context.Context) error {
	err := ca.answer(ctx, &ca.asked)
	if err == nil {
		ca.set(func() { ca.signed.count(time.Now()) })
	}
	return err
}

// apiServer reviews tokens.
type apiServer struct {
	queue
	reviewed rate // requests for reviews
}

// review handles a TokenReview.
func (a *apiServer) review(ctx context.Context) error { return a.answer(ctx, &a.reviewed) }

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

// answerRoots handles a request for the CA's roots.
func (ca *queueingCA) answerRoots(ctx context.Context) (issuer.Roots, error) {
	if err := ca.answer(ctx, &ca.rooted); err != nil {
		return issuer.Roots{}, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.roots, nil
}
