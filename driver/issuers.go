package driver

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// issuerState is a configured issuer with the driver's own state for it.
type issuerState struct {
	*volume.Issuer
	rootsRefresh time.Duration
	revocations  chan struct{} // holds an element for each revocation that waits or is in progress
	revoking     chan struct{} // holds an element for each revocation in progress
	cannotRevoke atomic.Bool   // the driver has logged that the issuer cannot revoke
}

func newIssuerState(name string, i Issuer, m *metrics) *issuerState {
	return &issuerState{
		Issuer: &volume.Issuer{
			Issuer:    i.Issuer,
			Name:      name,
			Scheduler: schedule.New(),
			Observe: func(p schedule.Priority, began time.Time, err error) {
				m.signed(name, p, began, issuer.OutcomeOf(err))
			},
		},
		rootsRefresh: i.RootsRefresh,
		revocations:  make(chan struct{}, mostWaiting),
		revoking:     make(chan struct{}, mostRevocations),
	}
}

// followRoots writes the issuer's newest roots into all of its volumes whenever the
// roots change, until ctx ends: those of the CA, and additional ones, which change also
// while the CA is down. It issues no certificates.
func (d *Driver) followRoots(ctx context.Context, i *issuerState) {
	logger := klog.FromContext(ctx).WithValues("issuer", i.Name)
	ctx = klog.NewContext(ctx, logger)
	i.FollowRoots(ctx, i.rootsRefresh, func(_ issuer.Roots, err error) {
		d.metrics.called(i.Name, callRoots, issuer.OutcomeOf(err))
		d.readiness.ObserveRoots(i.Name, err)
		if err == nil {
			d.trust.mayHaveChanged()
		}
		changed, early := 0, 0
		for _, v := range d.volumes.all() {
			if v.Issuer() != i.Issuer {
				continue
			}
			if d.replaceRoots(ctx, v) {
				changed++
			}
			if v.RenewEarly(ctx) {
				early++
			}
		}
		if changed > 0 {
			logger.Info("Roots replaced in volumes", "count", changed)
		}
		if early > 0 {
			logger.Info("Certificates are renewed early, because the CA has replaced its own",
				"count", early, "notAfter", i.CANotAfter().UTC().Format(time.RFC3339))
		}
	})
}

// replaceRoots isolates an error or a panic of one volume from the other volumes.
func (d *Driver) replaceRoots(ctx context.Context, v *volume.Volume) (changed bool) {
	changed, err := func() (changed bool, err error) {
		defer panics.Recover(ctx, "replace the roots", &err)
		return v.ReplaceRoots()
	}()
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot replace the roots in a volume", v.LogValues()...)
	}
	return changed
}
