package issuer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flexstack/step-csi/issuer/trust"
)

// chainOf returns the verified chain of an answer, leaf first, without its root. A
// leaf that becomes valid a little later, by the CA's clock, is accepted; see
// checkValidity.
func chainOf(answer, roots []*x509.Certificate) ([]*x509.Certificate, error) {
	leaf, intermediates := answer[0], answer[1:]
	now := time.Now()
	if leaf.NotBefore.After(now) {
		now = leaf.NotBefore
	}
	verified, err := verify(leaf, intermediates, roots, now)
	if err != nil {
		return nil, err
	}
	return verified[:len(verified)-1], nil
}

// verify returns the shortest chain from the leaf to one of roots. The error wraps
// errNoChain if there is none.
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
		return nil, errors.New("the certificate is one of the CA's roots")
	}
	return shortest, nil
}
