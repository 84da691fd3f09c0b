package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
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
	// revocationsAtOnce bounds the calls to an issuer beside those that sign.
	revocationsAtOnce = 4
)

// openToRevoke opens the volume at the target path, so that its certificate can be
// read when nothing writes there any more. It is nil if that is not needed, or not
// possible.
func (d *Driver) openToRevoke(id, path string) *os.Root {
	if v := d.tracked(id); v == nil || !v.attributes.RevokeOnDelete {
		return nil
	}
	target, err := d.openMounted(id, path)
	if err != nil {
		return nil
	}
	defer target.Close()
	root, err := tmpfs.Root(target)
	if err != nil {
		return nil
	}
	return root
}

// revocation is that of the certificate which was the last in the volume. The
// serial number is known in any case.
func (v *volume) revocation(last *os.Root) issuer.Revocation {
	r := issuer.Revocation{Serial: v.record.Serial, Pod: v.record.Pod}
	if last == nil {
		return r
	}
	key, err := payload.ReadKey(last, v.attributes)
	chain, chainErr := payload.ReadChain(last, v.attributes)
	if errors.Join(err, chainErr) == nil && chain[0].SerialNumber.String() == r.Serial {
		r.Chain, r.Key = chain, key
	}
	return r
}

// revoke revokes the certificate of a volume that is gone. Nobody waits for it but
// a plugin that stops, and that not for long.
func (d *Driver) revoke(ctx context.Context, v *volume, r issuer.Revocation) {
	logger := klog.FromContext(ctx).WithValues(v.logValues()...).WithValues("issuer", v.attributes.Issuer, "serial", r.Serial)
	authority := d.authorities[v.attributes.Issuer]
	err := persist(ctx, func(ctx context.Context) error {
		select {
		case authority.revoking <- struct{}{}:
			defer func() { <-authority.revoking }()
		case <-ctx.Done():
			return fmt.Errorf("%w: wait for other revocations: %w", issuer.Unavailable, ctx.Err())
		}
		return authority.issuer.Revoke(ctx, r)
	})
	switch {
	case err == nil:
		authority.cannotRevoke.Store(false)
		logger.Info("Revoked")
	case !errors.Is(err, issuer.Unsupported):
		logger.Error(err, "Not revoked; to do it by hand: step ca revoke "+r.Serial)
	case authority.cannotRevoke.CompareAndSwap(false, true):
		logger.Error(err, "Not revoked, and so it is with all certificates of this issuer; it is not said again")
	default:
		logger.V(4).Info("Not revoked", "reason", err.Error())
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
		if err == nil || !errors.Is(err, issuer.Unavailable) {
			return err
		}
		// Spread, since many pods may go at once.
		next := time.Now().Add(pause - time.Duration(renewal.Random()*float64(pause)/2))
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
