package volume

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/backoff"
)

// awaitValid waits until a new credential is valid by this machine's clock: before that,
// neither the pod nor its peers can use it. If ctx ends earlier, awaitValid does not wait.
// The outcome is then Unavailable.
func (v *Volume) awaitValid(ctx context.Context, c *issuer.Credential) error {
	from := c.ValidFrom()
	wait := time.Until(from)
	if wait <= 0 {
		return nil
	}
	clocks := v.issuer.CompareClocks()
	if end, limited := ctx.Deadline(); limited && end.Before(from) {
		return issuer.Unavailable.Because(fmt.Errorf("the certificate is valid from %s on, which is in %s by the clock of this machine and too late for this call: %s",
			from.UTC().Format(time.RFC3339), wait.Round(time.Second), clocks))
	}
	klog.FromContext(ctx).Info("The certificate is not valid yet; waiting until it is", append(v.LogValues(),
		"issuer", v.issuer.Name, "wait", wait.Round(time.Second).String(), "reason", clocks)...)
	// Someone may correct the clock meanwhile.
	for ; wait > 0; wait = time.Until(from) {
		if !backoff.Sleep(ctx, min(wait, time.Second)) {
			return issuer.Ended(ctx).Because(fmt.Errorf("wait until the certificate is valid: %w", ctx.Err()))
		}
	}
	return nil
}
