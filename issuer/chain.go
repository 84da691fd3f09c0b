package issuer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flexstack/step-csi/issuer/trust"
)

// chainOf returns the verified chain of an answer, leaf first, without its root.
func chainOf(answer, roots []*x509.Certificate) ([]*x509.Certificate, error) {
	leaf, intermediates := answer[0], answer[1:]
	// A leaf that becomes valid a little later, by the CA's clock, is accepted.
	now := time.Now()
	if leaf.NotBefore.After(now) {
		now = leaf.NotBefore
	}
	chain, err := verify(leaf, intermediates, roots, now)
	if err != nil {
		return nil, err
	}
	return chain[:len(chain)-1], nil
}

// verify returns the shortest chain from the leaf to one of roots.
func verify(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         trust.Pool(roots),
		Intermediates: trust.Pool(intermediates),
		// The CA's template decides on the extended key usages.
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: now,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoChain, err)
	}
	shortest := slices.MinFunc(chains, func(a, b []*x509.Certificate) int { return len(a) - len(b) })
	if len(shortest) < 2 {
		return nil, errors.New("it is one of the CA's roots")
	}
	return shortest, nil
}
