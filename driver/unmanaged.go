package driver

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/panics"
)

const (
	// unmanagedCheck is how often the driver looks for volumes that are not renewed.
	unmanagedCheck = time.Minute
	// unmanagedReport is how often the log names each of them. Their certificates expire
	// unless somebody changes something, and a log is rotated away.
	unmanagedReport = 15 * time.Minute
)

// logUnmanaged logs each volume that is not renewed like a failed renewal, again and again,
// until ctx ends.
func (d *Driver) logUnmanaged(ctx context.Context) {
	ticker := time.NewTicker(unmanagedCheck)
	defer ticker.Stop()
	logged := map[string]time.Time{}
	for {
		select {
		case <-ticker.C:
			logged = d.logUnmanagedOnce(ctx, logged)
		case <-ctx.Done():
			return
		}
	}
}

// logUnmanagedOnce logs the volumes that are not renewed, unless they were logged within
// unmanagedReport. logged and the result are when each was last logged, by target path.
func (d *Driver) logUnmanagedOnce(ctx context.Context, logged map[string]time.Time) map[string]time.Time {
	now, all := time.Now(), map[string]time.Time{}
	log := func(target string, reason error, values ...any) {
		defer panics.Recover(ctx, "log a volume that is not renewed", nil)
		all[target] = logged[target]
		if now.Sub(logged[target]) < unmanagedReport {
			return
		}
		all[target] = now
		klog.FromContext(ctx).Error(reason, "Renewal failed", append(values, "target", target)...)
	}
	for v := range d.collector.volumes {
		if v.unmanaged == nil {
			continue
		}
		values := append(v.LogValues(), "issuer", label(v.IssuerName()))
		if !v.trustOnly {
			values = append(values, "notAfter", v.state.Validity.NotAfter.UTC().Format(time.RFC3339))
		}
		log(v.Target, v.unmanaged, values...)
	}
	for target, reason := range d.volumes.allUnread() {
		log(target, reason)
	}
	return all
}
