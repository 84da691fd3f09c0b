package driver

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/panics"
)

const (
	// revocationLimit is how long the driver retries a revocation. Without a revocation,
	// the certificate still expires.
	revocationLimit      = 5 * time.Minute
	firstRevocationRetry = 2 * time.Second
	maxRevocationRetry   = time.Minute
	// revocationGrace is how long a revocation in progress may take when the plugin stops.
	revocationGrace = 10 * time.Second
	// mostRevocations limits the concurrent revocations of an issuer. The limit for
	// signing calls is separate.
	mostRevocations = 4
	// mostWaiting limits the revocations of an issuer that wait or are in progress. Each
	// holds a few KB.
	mostWaiting = 1000
)

// revokeLater revokes a certificate of the volume in the background, unless r is nil. A
// plugin that stops waits at most revocationGrace for the revocation.
func (d *Driver) revokeLater(ctx context.Context, v *volume.Volume, r *issuer.Revocation) {
	if r == nil {
		return
	}
	i := d.issuers[v.Issuer().Name]
	logger := klog.FromContext(ctx).WithValues(v.LogValues()...).WithValues("issuer", i.Name, "serial", r.Serial)
	d.revokeBy(klog.NewContext(d.background, logger), i, *r)
}

// revokeBy revokes a certificate of the issuer in the background, until ctx ends.
func (d *Driver) revokeBy(ctx context.Context, i *issuerState, r issuer.Revocation) {
	select {
	case i.revocations <- struct{}{}:
	default:
		i.logRevoked(ctx, r, fmt.Errorf("%d revocations are waiting already", mostWaiting))
		return
	}
	d.ending.Go(func() {
		defer func() { <-i.revocations }()
		i.logRevoked(ctx, r, i.revoke(ctx, r))
	})
}

// revoke retries until the certificate is revoked, or persist gives up.
func (i *issuerState) revoke(ctx context.Context, r issuer.Revocation) error {
	return persist(ctx, func(ctx context.Context) (err error) {
		defer panics.Recover(ctx, "revoke", &err)
		select {
		case i.revoking <- struct{}{}:
			defer func() { <-i.revoking }()
		case <-ctx.Done():
			return issuer.Ended(ctx).Because(fmt.Errorf("wait for other revocations: %w", ctx.Err()))
		}
		return i.Revoke(ctx, r)
	})
}

func (i *issuerState) logRevoked(ctx context.Context, r issuer.Revocation, err error) {
	logger := klog.FromContext(ctx)
	switch {
	case err == nil:
		i.cannotRevoke.Store(false)
		logger.Info("Certificate revoked")
	case issuer.OutcomeOf(err) != issuer.Unsupported:
		logger.Error(err, "Revocation failed; to revoke by hand: step ca revoke "+r.Serial)
	case i.cannotRevoke.CompareAndSwap(false, true):
		logger.Error(err, "This issuer cannot revoke certificates; further failures are logged at -v=4")
	default:
		logger.V(4).Info("Revocation failed", "reason", err.Error())
	}
}

// persist retries until try succeeds, a retry cannot help, or revocationLimit is over.
// When ctx ends, persist stops retrying and gives the call in progress revocationGrace.
func persist(ctx context.Context, try func(context.Context) error) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), revocationLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(revocationGrace, cancel) })()
	end, _ := limited.Deadline()
	retry := backoff.Backoff{First: firstRevocationRetry, Max: maxRevocationRetry}
	for {
		err := try(limited)
		if o := issuer.OutcomeOf(err); !o.IsDown() && o != issuer.Throttled && o != issuer.Canceled {
			return err
		}
		wait := retry.Next()
		switch {
		case time.Now().Add(wait).After(end):
			return fmt.Errorf("no more retries after %s: %w", revocationLimit, err)
		case !backoff.Sleep(ctx, wait):
			return fmt.Errorf("the plugin stops: %w", err)
		}
	}
}
