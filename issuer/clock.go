package issuer

import (
	"errors"
	"fmt"
	"time"

	"github.com/flexstack/step-csi/issuer/chain"
)

// Clock is a Signer that compares the clock of the CA, or of the registration authority,
// with that of this machine.
type Clock interface {
	// CompareClocks says how the clocks differ, as last seen, for error messages.
	CompareClocks() string
}

// CompareClocks says how the clock of the CA, or of the registration authority, differs from
// that of this machine, or what to compare if that is unknown.
func (i *Issuer) CompareClocks() string {
	if c, ok := i.signer.(Clock); ok {
		return c.CompareClocks()
	}
	return "compare the clocks of this machine and of the CA: date -u"
}

// ValidFrom is when the last certificate of the chain becomes valid. It is in the future if
// the CA's clock is ahead of this machine's by more than the CA backdates certificates.
func (c *Credential) ValidFrom() time.Time {
	from := c.Leaf().NotBefore
	for _, certificate := range c.Chain {
		if certificate.NotBefore.After(from) {
			from = certificate.NotBefore
		}
	}
	return from
}

// validityError is about a certificate that is valid at other times than it should be. The
// clocks may be the reason.
type validityError string

// Error implements error.
func (e validityError) Error() string { return string(e) }

// errNotYet is about a certificate that becomes valid too late. It becomes usable some time,
// or when the clocks are corrected.
var errNotYet = fmt.Errorf("%w: the certificate is not valid yet", Unavailable)

// refused is the error for an answer of the CA that failed a check. It compares the clocks
// if they may be the reason.
func (i *Issuer) refused(err error) error {
	_, validity := errors.AsType[validityError](err)
	_, ofChain := errors.AsType[*chain.ValidityError](err)
	clocks := ""
	if validity || ofChain || errors.Is(err, errNotYet) {
		clocks = " (" + i.CompareClocks() + ")"
	}
	if OutcomeOf(err) != Failed {
		return fmt.Errorf("%w%s", err, clocks)
	}
	return fmt.Errorf("%w: %w%s", InvalidAnswer, err, clocks)
}
