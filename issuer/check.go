package issuer

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flexstack/step-csi/issuer/trust"
)

// clockSkew is how far the CA's clock may be ahead of or behind this node's.
// step-ca backdates certificates by a minute for the same reason.
const clockSkew = 5 * time.Minute

// errNoChain is the error for a certificate that no known root signed; a new root may
// have.
var errNoChain = errors.New("no chain to a root of the CA")

// check compares the CA's answer with the request and returns the verified chain
// without its root: leaf first, each certificate signed by the next. It drops
// certificates in the answer that are not part of the chain.
func check(answer, roots []*x509.Certificate, req Request, public crypto.PublicKey, asked time.Time) ([]*x509.Certificate, error) {
	if len(answer) == 0 {
		return nil, errors.New("the answer contains no certificate")
	}
	leaf, intermediates := answer[0], answer[1:]
	if err := errors.Join(
		checkKey(leaf, public),
		checkNames(leaf, req),
		checkUsage(leaf),
		checkValidity(leaf, req.Duration, asked),
	); err != nil {
		return nil, err
	}
	now := time.Now()
	if leaf.NotBefore.After(now) {
		now = leaf.NotBefore // the CA's clock is ahead, within clockSkew
	}
	chain, err := verify(leaf, intermediates, roots, now)
	if err != nil {
		return nil, err
	}
	return chain[:len(chain)-1], nil
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

func checkKey(leaf *x509.Certificate, public crypto.PublicKey) error {
	key, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(leaf.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	return nil
}

// checkValidity accepts a shorter lifetime than requested, because the CA decides,
// but not a longer one (unless none was requested), nor a certificate that has expired or is not valid yet.
func checkValidity(leaf *x509.Certificate, duration time.Duration, asked time.Time) error {
	switch {
	case !leaf.NotAfter.After(time.Now()):
		return fmt.Errorf("the certificate expired at %s; check the clocks of the node and of the CA", leaf.NotAfter.Format(time.RFC3339))
	case leaf.NotBefore.After(asked.Add(clockSkew)):
		return fmt.Errorf("the certificate is not valid before %s; check the clocks of the node and of the CA", leaf.NotBefore.Format(time.RFC3339))
	case duration > 0 && leaf.NotAfter.After(asked.Add(duration+clockSkew)):
		return fmt.Errorf("the certificate is valid until %s, longer than the requested %s", leaf.NotAfter.Format(time.RFC3339), duration)
	}
	return nil
}
