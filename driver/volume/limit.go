package volume

import (
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// checkLonger returns schedule.ErrLimited if a certificate of the CA keeps the new
// certificate from working longer than the one before, which expired at the time before. It
// requires the lock.
func (v *Volume) checkLonger(before time.Time) error {
	c := v.certificate
	if c.LimitedBy == "" || c.ChainNotAfter.After(before) {
		return nil
	}
	return fmt.Errorf("%w: %s expires at %s, before the certificate; replace it at the CA of the issuer %s",
		schedule.ErrLimited, c.LimitedBy, c.ChainNotAfter.UTC().Format(time.RFC3339), v.issuer.Name)
}

// RenewEarly makes the renewal due if peers would accept a new certificate for longer than the
// mounted one: a certificate of the CA limits the mounted one, and the CA has shown a chain
// that is valid longer; or the CA has removed the root of the mounted one. It does so once for
// each such chain: a CA with several instances may sign with another one.
func (v *Volume) RenewEarly(ctx context.Context) (due bool) {
	entry := v.entry.Load()
	if entry == nil {
		return false
	}
	longest := v.issuer.CANotAfter()
	v.mu.Lock()
	rootless := v.rootless
	limited := v.certificate.LimitedBy != "" && longest.After(v.certificate.ChainNotAfter) && longest.After(v.early)
	due = (rootless != nil || limited) && !v.closed
	v.rootless = nil
	if limited {
		v.early = longest
	}
	v.mu.Unlock()
	if !due {
		return false
	}
	if rootless != nil {
		klog.FromContext(ctx).Error(rootless, "The CA has removed the root of a mounted certificate; it is renewed early", v.LogValues()...)
	}
	entry.RenewEarly()
	return true
}

// checkChain verifies the mounted chain by the CA's new roots, which may have changed how long
// the chain is valid. An expired root is not in the volume, but it limits the chain. checkChain
// requires the lock.
func (v *Volume) checkChain(root *os.Root) error {
	set, err := payload.OpenSet(root)
	if err != nil {
		return err
	}
	defer set.Close()
	certificates, err := readChain(set, v.attributes.Files.Certificate)
	if err != nil {
		return err
	}
	verified, err := verify(certificates, v.issuer.LatestRoots().Own)
	if v.rootless = err; err != nil {
		return nil // RenewEarly makes the renewal due
	}
	before := v.certificate
	v.certificate.limit(verified.LimitedBy(), verified.NotAfter())
	if entry := v.entry.Load(); entry != nil && v.certificate != before {
		entry.Change(v.validityLocked())
	}
	return nil
}
