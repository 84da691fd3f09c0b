package issuer

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flexstack/step-csi/issuer/chain"
	"github.com/flexstack/step-csi/issuer/clock"
)

// errNoChain is the error for a certificate that no known root signed; a new root may
// have.
var errNoChain = errors.New("no chain to a root of the CA")

// check compares the CA's answer with the request and returns the verified chain. If a
// certificate of the CA has expired or is not valid yet, the outcome is Unavailable.
func check(answer, roots []*x509.Certificate, req Request, public crypto.PublicKey, asked time.Time) (chain.Chain, error) {
	if len(answer) == 0 {
		return chain.Chain{}, errors.New("the answer contains no certificate")
	}
	leaf := answer[0]
	if err := errors.Join(
		checkKey(leaf, public),
		checkNames(leaf, req),
		checkSubject(leaf, req),
		checkOtherSubject(leaf, slices.Concat(answer[1:], roots)),
		checkUsage(leaf),
	); err != nil {
		return chain.Chain{}, err
	}
	if err := checkValidity(leaf, req.Duration, asked); err != nil {
		return chain.Chain{}, err
	}
	now := time.Now()
	if leaf.NotBefore.After(now) {
		now = leaf.NotBefore // the CA's clock is ahead, within clock.Tolerance
	}
	c, err := verify(answer, roots, now)
	if _, ok := errors.AsType[*chain.ValidityError](err); ok {
		err = Unavailable.Because(fmt.Errorf("peers would reject the certificate: %w; replace that certificate at the CA, or correct the clock of this machine", err))
	}
	return c, err
}

// verify verifies the chain, leaf first. The error is a *chain.ValidityError, or wraps
// errNoChain. The CA's template decides on the extended key usages.
func verify(certificates, roots []*x509.Certificate, now time.Time) (chain.Chain, error) {
	c, err := chain.Verify(certificates, roots, now, x509.ExtKeyUsageAny)
	if _, ok := errors.AsType[*chain.ValidityError](err); err != nil && !ok {
		err = fmt.Errorf("%w: %w", errNoChain, err)
	}
	return c, err
}

func checkKey(leaf *x509.Certificate, public crypto.PublicKey) error {
	key, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(leaf.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	return nil
}

// checkValidity accepts a shorter lifetime than requested, because the CA decides,
// but not a longer one (unless none was requested), nor a certificate that has expired or
// becomes valid much later.
func checkValidity(leaf *x509.Certificate, duration time.Duration, asked time.Time) error {
	switch now := time.Now(); {
	case !leaf.NotAfter.After(now):
		return validityError(fmt.Sprintf("the certificate expired at %s, and the clock of this machine shows %s",
			leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
	case leaf.NotBefore.After(asked.Add(clock.Tolerance)):
		return fmt.Errorf("%w: it is valid from %s on, in %s by the clock of this machine", errNotYet,
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotBefore.Sub(now).Round(time.Second))
	case duration > 0 && leaf.NotAfter.After(asked.Add(duration+clock.Tolerance)):
		return validityError(fmt.Sprintf("the certificate is valid until %s, longer than the requested %s",
			leaf.NotAfter.UTC().Format(time.RFC3339), duration))
	}
	return nil
}
