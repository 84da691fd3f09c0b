package issuer

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flexstack/step-csi/issuer/trust"
)

// verifier builds chains from leafs to roots. The intermediate is the same from
// one answer to the next, so it is verified once, and then stands for its root.
type verifier struct{ last atomic.Pointer[verified] }

// verified is an intermediate for which there was a chain to one of roots.
type verified struct {
	intermediate *x509.Certificate
	roots        []*x509.Certificate
	until        time.Time
}

var oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}

// chain returns the verified chain of an answer, leaf first, without its root.
func (v *verifier) chain(answer, roots []*x509.Certificate) ([]*x509.Certificate, error) {
	leaf, intermediates := answer[0], answer[1:]
	// A leaf that is valid a little later, by the CA's clock, is fine.
	now := time.Now()
	if leaf.NotBefore.After(now) {
		now = leaf.NotBefore
	}
	if last := v.last.Load(); last.fits(intermediates, roots, now) {
		if _, err := verify(leaf, nil, intermediates, now); err != nil {
			return nil, err
		}
		return []*x509.Certificate{leaf, last.intermediate}, nil
	}
	chain, err := verify(leaf, intermediates, roots, now)
	if err != nil {
		return nil, err
	}
	v.remember(chain, roots)
	return chain[:len(chain)-1], nil
}

// fits tells whether the intermediates and roots are those that were verified.
func (v *verified) fits(intermediates, roots []*x509.Certificate, now time.Time) bool {
	return v != nil && len(intermediates) == 1 && intermediates[0].Equal(v.intermediate) && now.Before(v.until) &&
		slices.EqualFunc(roots, v.roots, (*x509.Certificate).Equal)
}

// remember keeps what the next answer need not prove again, in the usual case:
// one intermediate, below a root that does not constrain names.
func (v *verifier) remember(chain, roots []*x509.Certificate) {
	if len(chain) != 3 {
		return
	}
	intermediate, root := chain[1], chain[2]
	for _, extension := range root.Extensions {
		if extension.Id.Equal(oidNameConstraints) {
			return
		}
	}
	until := intermediate.NotAfter
	if root.NotAfter.Before(until) {
		until = root.NotAfter
	}
	v.last.Store(&verified{intermediate: intermediate, roots: roots, until: until})
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
