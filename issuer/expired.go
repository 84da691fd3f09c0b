package issuer

import (
	"crypto/x509"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/trust"
)

// expiredRoots knows which expired roots are logged, so that each is logged once. It is
// not safe for concurrent use.
type expiredRoots struct {
	logged []*x509.Certificate
	all    bool // it is logged that no root of the CA is left
}

// report logs the roots that have expired since the last call. An administrator can do
// nothing about public ones.
func (e *expiredRoots) report(logger klog.Logger, roots Roots, now time.Time) {
	log := func(roots []*x509.Certificate, message string) {
		for _, root := range roots {
			if now.After(root.NotAfter) && !slices.ContainsFunc(e.logged, root.Equal) {
				e.logged = append(e.logged, root)
				logger.Info(message,
					"fingerprint", trust.Fingerprint(root), "subject", root.Subject.String(), "notAfter", root.NotAfter.UTC().Format(time.RFC3339))
			}
		}
	}
	roots.Public = nil
	all := roots.All()
	log(slices.Concat(roots.Own, roots.Federated), "A root of the CA has expired and is left out of the volumes; remove it from the CA's configuration")
	log(roots.Additional, "An additional root has expired and is left out of the volumes; remove it from "+chartvalue.Beside("additionalRootsFile"))
	// A root that is gone need not be remembered.
	e.logged = slices.DeleteFunc(e.logged, func(root *x509.Certificate) bool {
		return !slices.ContainsFunc(all, root.Equal) || !now.After(root.NotAfter)
	})
	err := roots.CheckExpiry(now)
	if err != nil && !e.all {
		logger.Error(err, "No valid root is left; the roots in the volumes stay as they are")
	}
	e.all = err != nil
}
