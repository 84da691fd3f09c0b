package issuer

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/chain"
	"github.com/flexstack/step-csi/issuer/trust"
)

// Intermediates is a Signer that knows what the CA signs with, without a signature.
type Intermediates interface {
	// Intermediates returns the certificate that the CA signs with, followed by the others
	// of its chain. There are none if the CA does not say.
	Intermediates(context.Context) ([]*x509.Certificate, error)
}

// limit is what an Issuer knows about the effective expiry of the CA's own certificates.
type limit struct {
	mu      sync.Mutex
	last    time.Time // of the chain that the CA has shown last
	longest time.Time // the latest that the CA has ever shown
	// intermediates are the verified answer of an Intermediates.
	intermediates []*x509.Certificate
	// warned has the fingerprints of certificates that observe has warned about.
	warned map[string]bool
}

const (
	// mostWarned limits the memory of warnings, because the CA decides how many certificates
	// it has.
	mostWarned = 64
	// intermediatesTimeout bounds a request for the intermediates. The roots do not wait
	// long for it.
	intermediatesTimeout = 5 * time.Second
	// leastRefresh is the shortest interval between two requests for the CA's chain.
	leastRefresh = 5 * time.Second
)

// observe takes note of a chain in an answer of the CA. If a certificate of the CA expires
// before the leaf, observe warns about it, once for each such certificate.
func (i *Issuer) observe(ctx context.Context, c chain.Chain) {
	limitedBy, fingerprint := c.LimitedBy(), trust.Fingerprint(c.First)
	i.limit.mu.Lock()
	known := i.limit.last
	longer := i.limit.show(c.CANotAfter)
	warn := limitedBy != "" && !i.limit.warned[fingerprint]
	if warn {
		if i.limit.warned == nil || len(i.limit.warned) >= mostWarned {
			i.limit.warned = map[string]bool{}
		}
		i.limit.warned[fingerprint] = true
	}
	i.limit.mu.Unlock()
	if warn {
		klog.FromContext(ctx).Info("Warning: a certificate of the CA expires before the certificates that it signs; "+
			"replace it at the CA. Until then, these certificates count as expiring with it",
			"limitedBy", limitedBy, "fingerprint", fingerprint, "notAfter", c.NotAfter().UTC().Format(time.RFC3339),
			"leafNotAfter", c.Certificates[0].NotAfter.UTC().Format(time.RFC3339))
	}
	if !known.IsZero() && longer || warn {
		i.refreshSoon() // certificates that the old chain limits can be renewed
	}
}

// show records the expiry of a chain, and tells whether it is the latest so far. It requires
// the lock.
func (l *limit) show(expiry time.Time) (longer bool) {
	l.last = expiry
	if longer = expiry.After(l.longest); longer {
		l.longest = expiry
	}
	return longer
}

// refreshSoon makes FollowRoots request the roots and the intermediates soon.
func (i *Issuer) refreshSoon() {
	select {
	case i.otherRoots <- struct{}{}:
	default:
	}
}

// refreshIntermediates asks what the CA signs with now, if the signer can say. A failure
// changes nothing: the next certificate shows the chain, too.
func (i *Issuer) refreshIntermediates(ctx context.Context, roots Roots) {
	signer, ok := i.signer.(Intermediates)
	if !ok {
		return
	}
	limited, cancel := context.WithTimeout(ctx, intermediatesTimeout)
	defer cancel()
	certificates, err := signer.Intermediates(limited)
	if err == nil && len(certificates) == 0 {
		return
	}
	var c chain.Chain
	if err == nil {
		c, err = verify(certificates, roots.Own, time.Now())
	}
	if err != nil {
		klog.FromContext(ctx).V(4).Info("The intermediates of the CA are unknown", "reason", err.Error())
		return
	}
	i.limit.mu.Lock()
	defer i.limit.mu.Unlock()
	i.limit.show(c.NotAfter())
	i.limit.intermediates = certificates
}

// refreshInterval returns the interval between two requests for the roots: every, or less if
// the CA's own certificates are about to expire, so that a new intermediate is noticed in
// time.
func (i *Issuer) refreshInterval(every time.Duration) time.Duration {
	i.limit.mu.Lock()
	defer i.limit.mu.Unlock()
	if left := time.Until(i.limit.last); left > 0 {
		return min(every, max(left/8, leastRefresh))
	}
	return every
}

// CANotAfter returns the latest effective expiry of the CA's own certificates, as far as the
// CA has shown them. No certificate of the CA works longer.
func (i *Issuer) CANotAfter() time.Time {
	i.limit.mu.Lock()
	defer i.limit.mu.Unlock()
	return i.limit.longest
}

// LatestIntermediates returns what the CA signs with, as it said last, without a request.
// There are none if it did not say.
func (i *Issuer) LatestIntermediates() []*x509.Certificate {
	i.limit.mu.Lock()
	defer i.limit.mu.Unlock()
	return i.limit.intermediates
}
