package driver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/renewal"
)

const (
	// revocationLimit bounds how long a revocation is tried. The certificate
	// expires anyway.
	revocationLimit = 5 * time.Minute
	// The pause between two tries doubles, from the first to the longest.
	firstRevocationPause   = 2 * time.Second
	longestRevocationPause = time.Minute
	// revocationGrace is how long one that is under way may take when the plugin
	// stops.
	revocationGrace = 10 * time.Second
	// mostRevocations bounds the calls to an issuer beside those that sign.
	mostRevocations = 4
)

// revokeLater revokes the certificate of a volume that is gone, without delaying the
// kubelet. A plugin that stops waits for it, but not for long.
func (d *Driver) revokeLater(ctx context.Context, v *volume.Volume, r issuer.Revocation) {
	i := d.issuers[v.Issuer().Name]
	ctx = klog.NewContext(d.background, klog.FromContext(ctx).WithValues(v.LogValues()...).WithValues("issuer", i.Name, "serial", r.Serial))
	d.ending.Go(func() { i.logRevoked(ctx, r, i.revoke(ctx, r)) })
}

// revoke retries until the certificate is revoked, cannot be, or expires soon anyway.
func (i *issuerState) revoke(ctx context.Context, r issuer.Revocation) error {
	return persist(ctx, func(ctx context.Context) (err error) {
		defer panics.Recover(ctx, "revoke", &err)
		select {
		case i.revoking <- struct{}{}:
			defer func() { <-i.revoking }()
		case <-ctx.Done():
			return fmt.Errorf("%w: wait for other revocations: %w", issuer.Ended(ctx), ctx.Err())
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

// persist tries until it succeeds, or cannot succeed any more, or the time for it
// is over. When ctx ends, there is no other try, and the one under way has a little
// time to end.
func persist(ctx context.Context, try func(context.Context) error) error {
	limited, cancel := outlasting(ctx, revocationGrace, revocationLimit)
	defer cancel()
	end, _ := limited.Deadline()
	for pause := firstRevocationPause; ; pause = min(2*pause, longestRevocationPause) {
		err := try(limited)
		if o := issuer.OutcomeOf(err); !o.IsDown() && o != issuer.Throttled && o != issuer.Canceled {
			return err
		}
		// Spread, since many pods may go at once.
		next := time.Now().Add(pause - time.Duration(rand.Float64()*float64(pause)/2))
		switch {
		case next.After(end):
			return fmt.Errorf("given up after %s: %w", revocationLimit, err)
		case !renewal.SleepUntil(ctx, next):
			return fmt.Errorf("the plugin stops: %w", err)
		}
	}
}

// outlasting is a context that ends a grace after the other one, and anyway after
// the limit.
func outlasting(ctx context.Context, grace, limit time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	unlink := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() {
		unlink()
		cancel()
	}
}
