package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/trust"
)

// Roots are what a pod verifies its peers by.
type Roots struct {
	// Own are all roots of the authority, not only the one that it signs under.
	Own []*x509.Certificate
	// Federated are those of authorities that it vouches for, where they are
	// wanted. What the authority itself answers is not verified by them.
	Federated []*x509.Certificate
}

// All are both, each once.
func (r Roots) All() []*x509.Certificate { return trust.Union(r.Own, r.Federated) }

// Same tells whether both are the same, in whatever order.
func (r Roots) Same(other Roots) bool {
	return trust.Same(r.Own, other.Own) && trust.Same(r.Federated, other.Federated)
}

// latestRoots holds the newest roots that were answered. Answers can arrive in
// another order than they were asked for: the question that was asked last counts.
type latestRoots struct {
	mu    sync.Mutex
	roots Roots
	asked time.Time
}

func (l *latestRoots) store(roots Roots, asked time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !asked.Before(l.asked) {
		l.roots, l.asked = roots, asked
	}
}

// LatestRoots returns the newest roots that this issuer knows, without asking for
// them. It knows some once it has signed, or FollowRoots has announced some.
func (i *Issuer) LatestRoots() Roots {
	i.roots.mu.Lock()
	defer i.roots.mu.Unlock()
	return i.roots.roots
}

// soon is how long a refresh waits that was not awaited: whatever shows that the
// roots are others comes more than once.
const soon = time.Second

// FollowRoots asks for the roots until ctx ends: at once, then on a timer with a
// jitter of 10 %, and whenever an answer of the authority shows that there are
// others. answered gets each answer, or why there is none.
func (i *Issuer) FollowRoots(ctx context.Context, every time.Duration, answered func(Roots, error)) {
	logger := klog.FromContext(ctx)
	failed, next := false, time.Now()
	for i.sleep(ctx, next) {
		roots, err := i.refreshRoots(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failed { // once: renewals tell, too
			logger.Error(err, "The roots are not refreshed; those that were known stay")
		}
		failed = err != nil
		answered(roots, err)
		next = time.Now().Add(every + time.Duration((0.2*renewal.Random()-0.1)*float64(every)))
	}
}

// sleep waits until the time has come, or the roots are others.
func (i *Issuer) sleep(ctx context.Context, until time.Time) bool {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-i.otherRoots:
		awake := renewal.SleepUntil(ctx, time.Now().Add(soon))
		select {
		case <-i.otherRoots:
		default:
		}
		return awake
	case <-ctx.Done():
		return false
	}
}

// refreshRoots logs what an administrator has to do while roots are rotated.
func (i *Issuer) refreshRoots(ctx context.Context) (Roots, error) {
	asked := time.Now()
	roots, err := i.signer.RefreshRoots(ctx)
	if err != nil {
		return Roots{}, err
	}
	i.roots.store(roots, asked)
	if known := i.followed.Swap(&roots); known == nil || !known.Same(roots) {
		logger := klog.FromContext(ctx)
		logger.Info("Roots", "own", fingerprints(roots.Own), "federated", fingerprints(roots.Federated))
		if unpinned := i.signer.Trust().Unpinned(roots.Own); len(unpinned) > 0 {
			logger.Info("The configuration does not name all roots of the CA: add these before another one goes, in fingerprint or caBundleFile",
				"fingerprints", unpinned)
		}
	}
	return roots, nil
}

// noticeRoots has the roots refreshed if these are others than the known ones.
func (i *Issuer) noticeRoots(roots Roots) {
	if known := i.followed.Load(); known == nil || known.Same(roots) {
		return
	}
	select {
	case i.otherRoots <- struct{}{}:
	default:
	}
}

func fingerprints(certificates []*x509.Certificate) []string {
	var all []string
	for _, certificate := range certificates {
		all = append(all, trust.Fingerprint(certificate))
	}
	return all
}

// errNoChain says that the answer may come from a root that is not known yet.
var errNoChain = errors.New("no chain to a root of the CA")
