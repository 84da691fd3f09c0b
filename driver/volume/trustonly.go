package volume

import (
	"context"
	"fmt"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// TrustOnly tells whether the pod wants the roots alone: the volume has no certificate, which
// could be renewed, revoked or expire. It follows the roots like every volume. TrustOnly knows
// this also if the attributes do not fit the configuration.
func (v *Volume) TrustOnly() bool { return v.Attributes["trust-only"] == "true" }

// onlyRoots waits until the roots of the issuer are known. The credential has nothing else:
// write takes the newest roots.
func (v *Volume) onlyRoots(ctx context.Context) (*issuer.Credential, error) {
	if err := v.issuer.AwaitRoots(ctx); err != nil {
		return nil, fmt.Errorf("issuer %s: %w", v.issuer.Name, err)
	}
	return &issuer.Credential{}, nil
}

// trustState is the state of a volume with trust only. Nothing is due, and it fails while the
// newest roots cannot be written.
func (v *Volume) trustState() schedule.State {
	v.mu.Lock()
	s := schedule.State{Err: v.unwritten, Failures: v.attempts}
	v.mu.Unlock()
	if err := v.Unmanaged(); err != nil {
		s.Err = err
	}
	return s
}
