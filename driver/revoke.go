package driver

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// revocationTries and the doubling pause between them bound how long a
// revocation is tried: about two minutes. The certificate expires anyway.
const (
	revocationTries = 6
	revocationPause = 4 * time.Second
)

// revoke revokes the certificate of a volume that is gone. Nobody waits for it.
func (d *Driver) revoke(ctx context.Context, v *volume) {
	logger := klog.FromContext(ctx).WithValues(v.logValues()...)
	for try := range revocationTries {
		if try > 0 && !renewal.SleepUntil(ctx, time.Now().Add(revocationPause<<(try-1))) {
			break
		}
		err := d.authorities[v.attributes.Issuer].issuer.Revoke(ctx, v.record.Serial)
		if err == nil {
			logger.Info("Revoked", "serial", v.record.Serial)
			return
		}
		logger.Error(err, "Revocation failed", "serial", v.record.Serial, "tries", try+1)
		if !errors.Is(err, issuer.ErrUnavailable) {
			return // it will not get better
		}
	}
}
