package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// HolderRenewal is a Signer that can tell whether its CA also renews a certificate for
// anyone who has the certificate and its key. Such a renewal needs neither the signer
// nor the policy nor a running pod, and has no end. The plugin never uses it: each of
// its renewals is a new certificate.
type HolderRenewal interface {
	// HolderRenewal reads this setting at the CA, unless it was read within maxAge. If
	// the CA allows holders to renew, the text says why, and what to change; otherwise
	// the text is empty. An error means that Sign would fail, too.
	HolderRenewal(ctx context.Context, maxAge time.Duration) (allowed string, err error)
}

// How long an Issuer that requires the setting believes what it has read. A refusal is
// read again soon, so that retries succeed once the CA is configured.
const (
	disabledMaxAge = 10 * time.Minute
	allowedMaxAge  = 5 * time.Second
)

// requireDisabled returns the signer as a HolderRenewal.
func requireDisabled(s Signer) (HolderRenewal, error) {
	h, ok := s.(HolderRenewal)
	if !ok {
		return nil, errors.New("provisioner.requireDisableRenewal: this type of provisioner does not tell whether the CA renews certificates for their holders")
	}
	return h, nil
}

// refuseHolderRenewal returns an error if renewal by holders must be disabled and is
// not. The outcome is Unavailable, because it concerns all pods of the issuer, and
// retries succeed once the CA is configured.
func (i *Issuer) refuseHolderRenewal(ctx context.Context) error {
	if i.requireDisabled == nil {
		return nil
	}
	allowed, err := i.requireDisabled.HolderRenewal(ctx, disabledMaxAge)
	if err == nil && allowed != "" {
		allowed, err = i.requireDisabled.HolderRenewal(ctx, allowedMaxAge)
	}
	if err == nil && allowed != "" {
		err = Unavailable.Because(fmt.Errorf("the configuration has provisioner.requireDisableRenewal, but %s", allowed))
	}
	return err
}
