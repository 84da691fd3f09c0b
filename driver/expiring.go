package driver

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/panics"
)

// expiringCheck is how often the driver looks for certificates that are expiring.
const expiringCheck = time.Minute

// errOverdue is why a certificate is expiring whose renewal has not failed.
var errOverdue = errors.New("the renewal is overdue, but has not failed")

// logExpiring logs each certificate that is expiring, once, until ctx ends. The metrics
// only count these certificates: the log names the pods. While the CA is down, most
// volumes have no failed renewal of their own in the log.
func (d *Driver) logExpiring(ctx context.Context) {
	ticker := time.NewTicker(expiringCheck)
	defer ticker.Stop()
	logged := map[string]time.Time{}
	for {
		logged = d.logExpiringOnce(ctx, logged)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// logExpiringOnce logs the certificates that are not in logged. It returns all that are
// expiring: their expiry by target path.
func (d *Driver) logExpiringOnce(ctx context.Context, logged map[string]time.Time) (all map[string]time.Time) {
	all = map[string]time.Time{}
	now := time.Now()
	for v := range d.collector.volumes {
		if v.expiring(now) {
			v.logExpiring(ctx, logged, all)
		}
	}
	return all
}

func (v volumeSnapshot) logExpiring(ctx context.Context, logged, all map[string]time.Time) {
	defer panics.Recover(ctx, "log an expiring certificate", nil)
	expiry := v.state.Validity.NotAfter
	all[v.Target] = expiry
	if known, is := logged[v.Target]; is && known.Equal(expiry) {
		return
	}
	reason := v.state.Err
	if reason == nil {
		reason = errOverdue
	}
	values := append(v.LogValues(), "issuer", v.issuer, "notAfter", expiry.UTC().Format(time.RFC3339), "failures", v.state.Failures)
	if limitedBy := v.state.Validity.LimitedBy; limitedBy != "" {
		values = append(values, "limitedBy", limitedBy)
	}
	klog.FromContext(ctx).Error(reason, "Certificate expiring", values...)
}
