package issuer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/trust"
)

// Roots are the certificates by which a pod verifies its peers.
type Roots struct {
	// Own are all roots of the CA, not only the one that it signs under.
	Own []*x509.Certificate
	// Federated are the roots of CAs that this CA is federated with, if the issuer is
	// configured to include them. They never verify what this CA itself signs.
	Federated []*x509.Certificate
	// Additional and Public are what the administrator adds for pods: the roots of
	// additionalRootsFile, and publicly trusted ones. They verify neither what this CA signs
	// nor its server. Only LatestRoots returns them.
	Additional, Public []*x509.Certificate
	// Ignored are the roots that the CA answered and the configuration does not allow,
	// with roots.pinned.
	Ignored []*x509.Certificate
	// Asked is when the CA was asked for these roots, by this machine's clock. It orders
	// answers: the roots of a CA change, and answers can arrive late.
	Asked time.Time
}

// All returns the roots of all kinds, without duplicates. Roots are a set: All orders them
// by themselves and not as the CA answered them, because its order can change when nothing
// else does, such as that of federated roots with each restart of step-ca. The CA's own
// roots come first, for programs that read only the first certificate of a file; then
// federated, additional and public ones.
func (r Roots) All() (all []*x509.Certificate) {
	for _, kind := range [][]*x509.Certificate{r.Own, r.Federated, r.Additional, r.Public} {
		all = trust.Union(all, trust.Sorted(kind))
	}
	return all
}

// Current returns the roots without those that have expired at that time. Verifiers reject
// an expired root, and some of them do not look for another one. A root that is not valid
// yet stays: verifiers do not use it before it is, and pods that read their files once must
// have it then.
func (r Roots) Current(now time.Time) Roots {
	for _, kind := range []*[]*x509.Certificate{&r.Own, &r.Federated, &r.Additional, &r.Public} {
		*kind = trust.Unexpired(*kind, now)
	}
	return r
}

// CheckExpiry returns an error if all of the CA's own roots have expired at that time.
func (r Roots) CheckExpiry(now time.Time) error {
	if len(r.Own) == 0 || len(trust.Unexpired(r.Own, now)) > 0 {
		return nil
	}
	last := slices.MaxFunc(r.Own, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	return fmt.Errorf("all roots of the CA have expired: the last one, %s, at %s; add a new root to the CA, or correct the clock of this machine, which shows %s",
		trust.Fingerprint(last), last.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// Same tells whether both have the same certificates, in any order.
func (r Roots) Same(other Roots) bool {
	return trust.Same(r.Own, other.Own) && trust.Same(r.Federated, other.Federated) && trust.Same(r.Ignored, other.Ignored) &&
		trust.Same(r.Additional, other.Additional) && trust.Same(r.Public, other.Public)
}

// Accept returns the roots that the pins allow. If they allow none of the CA's own roots,
// the outcome is InvalidAnswer.
func (r Roots) Accept(p trust.Pins) (Roots, error) {
	own, ignored := p.Accept(r.Own)
	federated, alsoIgnored := p.Accept(r.Federated)
	if len(own) == 0 {
		return Roots{}, fmt.Errorf("%w: roots.pinned is true, and none of the CA's %d roots is in fingerprint or %s; "+
			"the first one has the fingerprint %s", InvalidAnswer, len(r.Own), chartvalue.Beside("caBundleFile"), trust.Fingerprint(r.Own[0]))
	}
	return Roots{Own: own, Federated: federated, Ignored: slices.Concat(ignored, alsoIgnored), Asked: r.Asked}, nil
}

// latestRoots holds the newest roots that the CA answered. Answers can arrive in another
// order than their requests: the latest request counts.
type latestRoots struct {
	known chan struct{} // closed when there are roots
	once  sync.Once     // closes it

	mu    sync.Mutex
	roots Roots
	err   error // of the last request that failed while there were none
}

func (l *latestRoots) store(roots Roots) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if roots.Asked.Before(l.roots.Asked) {
		return
	}
	if len(roots.Own) > 0 {
		l.once.Do(func() { close(l.known) })
	}
	l.roots, l.err = roots, nil
}

// fail notes why a request failed.
func (l *latestRoots) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.roots.Own) == 0 {
		l.err = err
	}
}

func (l *latestRoots) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *latestRoots) load() Roots {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.roots
}

// LatestRoots returns the newest roots that this issuer knows, without a request, and those
// that the administrator adds for pods. The CA's own are not known before the first
// certificate and the first result of FollowRoots.
func (i *Issuer) LatestRoots() Roots { return i.anchors.join(i.roots.load()) }

// rootsWait limits how long AwaitRoots waits. It is longer than a call to a CA that does not
// answer.
const rootsWait = 30 * time.Second

// AwaitRoots waits until FollowRoots has got the roots of the CA for the first time, and makes
// it request them soon. If there are none after half a minute, or when ctx ends, the error has
// the outcome of the last request.
func (i *Issuer) AwaitRoots(ctx context.Context) error {
	if len(i.roots.load().Own) > 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, rootsWait)
	defer cancel()
	i.refreshSoon()
	select {
	case <-i.roots.known:
		return nil
	case <-limited.Done():
	}
	err := i.roots.failure()
	switch {
	case err != nil:
	case ctx.Err() != nil:
		err = Ended(ctx).Because(ctx.Err())
	default:
		err = Unavailable.Because(errors.New("the request is not answered"))
	}
	return fmt.Errorf("wait for the roots of the CA: %w", err)
}

// rootsDebounce delays a refresh that a new root in an answer triggers: more answers
// with that root follow.
const rootsDebounce = time.Second

// FollowRoots requests the roots until ctx ends: at once, then at the interval every
// with a jitter of 10 %, and when an answer of the CA shows that there are other roots.
// Before the first success it retries with backoff, and logs no errors that are normal
// during the startup: Watch logs their reasons. observe gets the result of every request;
// the additional roots may have changed even if it failed.
func (i *Issuer) FollowRoots(ctx context.Context, every time.Duration, observe func(Roots, error)) {
	logger := klog.FromContext(ctx)
	retry := backoff.Backoff{First: time.Second, Max: every}
	startup, logged := NewStartup(), false
	for wait := time.Duration(0); i.waitForRoots(ctx, wait); {
		err := i.followRoots(ctx, observe)
		if ctx.Err() != nil {
			return
		}
		unknown := i.followed.Load() == nil
		if err != nil && !logged && !(unknown && startup.Waits(err)) { // once: renewals log errors, too
			logger.Error(err, "Roots refresh failed; the known roots stay in use")
			logged = true
		}
		logged = logged && err != nil
		if wait = jittered(i.refreshInterval(every)); err != nil && unknown {
			wait = retry.Next()
		}
	}
}

// jittered returns the interval with a jitter of 10 %.
func jittered(every time.Duration) time.Duration {
	return every + time.Duration((0.2*rand.Float64()-0.1)*float64(every))
}

// waitForRoots waits, but no longer than until an answer shows other roots. It returns
// false when ctx ends.
func (i *Issuer) waitForRoots(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-i.otherRoots:
	case <-ctx.Done():
		return false
	}
	awake := backoff.Sleep(ctx, rootsDebounce)
	select {
	case <-i.otherRoots:
	default:
	}
	return awake
}

func (i *Issuer) followRoots(ctx context.Context, observe func(Roots, error)) (err error) {
	defer panics.Recover(ctx, "replace the roots", &err)
	i.anchors.follow(klog.FromContext(ctx))
	roots, err := i.refreshRoots(ctx)
	if ctx.Err() == nil {
		observe(roots, err)
	}
	return err
}

// refreshRoots requests the roots. It logs new ones, and those that are missing in the
// configuration.
func (i *Issuer) refreshRoots(ctx context.Context) (roots Roots, err error) {
	defer panics.Recover(ctx, "refresh the roots", &err)
	if roots, err = i.signer.RefreshRoots(ctx); err != nil {
		i.roots.fail(err)
		return Roots{}, err
	}
	i.roots.store(roots)
	i.expired.report(klog.FromContext(ctx), i.LatestRoots(), time.Now())
	i.refreshIntermediates(ctx, roots)
	if known := i.followed.Swap(&roots); known == nil || !known.Same(roots) {
		logger := klog.FromContext(ctx)
		logger.Info("New CA roots", "own", trust.Fingerprints(roots.Own), "federated", trust.Fingerprints(roots.Federated))
		if len(roots.Ignored) > 0 {
			logger.Info("Ignoring roots of the CA that the configuration does not name (roots.pinned); "+
				"to trust them, add them to fingerprint or "+chartvalue.Beside("caBundleFile"), "fingerprints", trust.Fingerprints(roots.Ignored))
		}
		if unpinned := i.signer.Trust().Unpinned(roots.Own); len(unpinned) > 0 {
			logger.Info("The configuration does not name all roots of the CA; add these to fingerprint or "+chartvalue.Beside("caBundleFile")+" before the CA removes another root",
				"fingerprints", unpinned)
		}
	}
	return roots, nil
}
