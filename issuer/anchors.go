package issuer

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/trust"
)

const (
	// MaxAdditionalRoots is the largest number of additional roots. Lists of publicly
	// trusted roots have less than 200.
	MaxAdditionalRoots = 256
	// maxAnchorRSA is the largest RSA key of an additional root, in bits, that crypto/tls
	// accepts.
	maxAnchorRSA = 8192
)

// ParseAdditionalRoots parses roots in PEM. It rejects more than MaxAdditionalRoots, because
// each volume has a copy of them.
func ParseAdditionalRoots(bundle []byte) ([]*x509.Certificate, error) {
	roots, err := trust.ParseBundle(bundle)
	if err != nil {
		return nil, err
	}
	if roots = trust.Union(roots, nil); len(roots) > MaxAdditionalRoots {
		return nil, fmt.Errorf("it has %d certificates; %d are allowed, because each volume has a copy of them", len(roots), MaxAdditionalRoots)
	}
	for _, root := range roots {
		if key, ok := root.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxAnchorRSA {
			return nil, fmt.Errorf("the certificate %s has an RSA key of %d bits; %d are allowed, because most programs reject larger ones",
				trust.Fingerprint(root), key.N.BitLen(), maxAnchorRSA)
		}
	}
	return roots, nil
}

// anchors are the trust anchors that the administrator adds to the roots of the CA. They are
// for pods alone: they verify neither what the CA signs, nor the issuer's server.
type anchors struct {
	public     []*x509.Certificate
	read       func() ([]*x509.Certificate, error) // the additional roots; nil if there are none
	additional atomic.Pointer[[]*x509.Certificate] // as last read
	failure    string                              // the error that was logged last
}

// join returns the roots of the CA with the anchors.
func (a *anchors) join(roots Roots) Roots {
	if additional := a.additional.Load(); additional != nil {
		roots.Additional = *additional
	}
	roots.Public = a.public
	return roots
}

// load reads the additional roots. After an error, the known ones stay.
func (a *anchors) load() (changed bool, err error) {
	if a.read == nil {
		return false, nil
	}
	roots, err := a.read()
	if err != nil {
		return false, err
	}
	if known := a.additional.Load(); known != nil && trust.Same(*known, roots) {
		return false, nil // the same pointers are compared fast
	}
	a.additional.Store(&roots)
	return true, nil
}

// follow is load for FollowRoots, with a log. It logs an error once.
func (a *anchors) follow(logger klog.Logger) {
	changed, err := a.load()
	switch {
	case err != nil && err.Error() != a.failure:
		a.failure = err.Error()
		logger.Error(err, "Cannot read the additional roots; the known ones stay in use")
	case err == nil:
		a.failure = ""
	}
	if changed {
		logger.Info("New additional roots", "count", len(*a.additional.Load()), "fingerprints", firstFingerprints(*a.additional.Load()))
	}
}

// firstFingerprints bounds a log line.
func firstFingerprints(roots []*x509.Certificate) []string {
	const most = 16
	return trust.Fingerprints(roots[:min(len(roots), most)])
}
