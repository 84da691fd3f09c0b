package volume

import (
	"context"
	"crypto/x509"
	"errors"
	"os"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// Close detaches the volume and ends its renewals. It returns the certificate to
// revoke, if the pod requests revocation. After an error, the volume is unchanged.
func (v *Volume) Close() (*issuer.Revocation, error) {
	var last *os.Root // keeps the files readable after Detach
	if v.attributes.RevokeOnDelete {
		if target, err := v.Open(); err == nil {
			last, _ = tmpfs.Root(target)
			target.Close()
		}
	}
	if last != nil {
		defer last.Close()
	}
	if err := Detach(v.node, v.Target); err != nil {
		return nil, err
	}
	return v.end(last), nil
}

// Abandon ends the renewals of a volume that another process has unmounted. It returns
// the certificate to revoke, if the pod requests revocation.
func (v *Volume) Abandon() *issuer.Revocation { return v.end(nil) }

// end stops the renewals, and returns the revocation of the last certificate, or nil if
// the pod does not request it. last contains the files, or is nil if they are lost.
func (v *Volume) end(last *os.Root) *issuer.Revocation {
	v.Stop()
	if !v.attributes.RevokeOnDelete {
		return nil
	}
	// Stop waits for a renewal in progress: the certificate does not change any more.
	r := &issuer.Revocation{Serial: v.certificate.Serial, Pod: v.Pod, Unproven: !v.issued}
	if last == nil {
		return r
	}
	set, err := payload.OpenSet(last)
	if err != nil {
		return r
	}
	defer set.Close()
	key, err := payload.ReadKey(set, v.attributes.Files.PrivateKey)
	if err != nil {
		return r
	}
	chain, err := readChain(set, v.attributes.Files.Certificate)
	if err == nil && (r.Unproven || chain[0].SerialNumber.String() == r.Serial) {
		r.Serial, r.Chain, r.Key = chain[0].SerialNumber.String(), chain, key
	}
	return r
}

// revokeUnused revokes a certificate that was issued and will not be mounted, if the pod
// requests revocation.
func (v *Volume) revokeUnused(ctx context.Context, chain []*x509.Certificate, key issuer.PrivateKey) {
	if v.attributes.RevokeOnDelete {
		v.node.Revoke(ctx, v, issuer.Revocation{Serial: chain[0].SerialNumber.String(), Pod: v.Pod, Chain: chain, Key: key})
	}
}

// signToTheEnd is sign for a volume whose certificates are revoked. Once the call has
// begun, it continues in the background when ctx ends, because the CA may have signed
// already. If its answer comes too late or cannot be used, signToTheEnd revokes the
// certificate.
func (v *Volume) signToTheEnd(ctx context.Context, p schedule.Priority, prepared issuer.Prepared) (*issuer.Credential, error) {
	type answer struct {
		credential *issuer.Credential
		err        error
	}
	answers := make(chan answer)
	v.node.Background(func(background context.Context) {
		background, cancel := context.WithTimeout(background, renewalTimeout)
		defer cancel()
		var a answer
		func() {
			defer panics.Recover(background, "get a certificate", &a.err)
			a.credential, a.err = v.sign(ctx, p, func(context.Context) (*issuer.Credential, error) {
				return v.issuer.Sign(background, prepared)
			})
		}()
		if unused, ok := errors.AsType[*issuer.UnusableError](a.err); ok {
			v.revokeUnused(background, unused.Chain, unused.Key)
		}
		select {
		case answers <- a:
		case <-ctx.Done():
			if a.err == nil {
				v.revokeUnused(background, a.credential.Chain, a.credential.Key)
			}
		}
	})
	select {
	case a := <-answers:
		return a.credential, a.err
	case <-ctx.Done():
		return nil, issuer.Ended(ctx).Because(ctx.Err())
	}
}
