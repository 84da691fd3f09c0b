package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	limit "golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// The timeouts and limits of the registration authority (issuer/ra/server) and of its
// client (issuer/ra), by default.
const (
	replicas        = 2
	clientTimeout   = 20 * time.Second
	handlerTimeout  = 17 * time.Second
	reviewTimeout   = 10 * time.Second
	keepReview      = 10 * time.Second // of a caller
	podReviews      = 16               // at a time, as the next two
	knownReviews    = 4                // of callers that were accepted before
	unknownReviews  = 5                // of other callers
	callsInFlight   = 512
	authorityRoots  = 30 * time.Second // between two requests for the CA's roots
	overLimit       = time.Second      // how long a call over the limit of its node waits
	limitOfNode     = 50
	burstOfNode     = 500
	limitOfPod      = 1
	burstOfPod      = 20
	attempts        = 3  // of a call, at different replicas
	fullRetryBudget = 10 // of a node; below half of it, its calls are not retried
)

var (
	errNodeLimit = fmt.Errorf("%w: rate limit of the node exceeded", issuer.Unavailable)
	errPodLimit  = fmt.Errorf("%w: rate limit of the pod exceeded", issuer.Throttled)
)

// authority is the registration authority, with all its replicas. Its own work takes no
// time: it waits for reviews and for the CA.
type authority struct {
	replicas []*replica

	mu      sync.Mutex
	asked   rate // requests of nodes for certificates
	failed  rate // of these
	rooted  rate // requests of nodes for roots
	limited atomic.Int64
}

// replica is one process of the authority.
type replica struct {
	authority *authority
	ca        *queueingCA
	api       *apiServer

	stop context.CancelFunc
	ends sync.WaitGroup

	// Slots: each element is a call in progress.
	calls, podReviews, knownReviews, unknownReviews chan struct{}

	mu        sync.Mutex
	running   bool
	roots     issuer.Roots
	nodes     map[*node]*limit.Limiter
	pods      map[string]*limit.Limiter
	sweepAt   int
	fresh     map[*node]time.Time // until when the review of the caller stands
	reviewing map[*node]*callerReview
}

func newAuthority(f *fleet) *authority {
	a := &authority{asked: rate{begin: f.begin}, failed: rate{begin: f.begin}, rooted: rate{begin: f.begin}}
	for range replicas {
		a.replicas = append(a.replicas, &replica{authority: a, ca: f.ca, api: f.api})
	}
	return a
}

// start starts the replica, which knows no caller.
func (r *replica) start() {
	ctx, stop := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	r.mu.Lock()
	r.stop, r.running = stop, true
	r.calls = make(chan struct{}, callsInFlight)
	r.podReviews = make(chan struct{}, podReviews)
	r.knownReviews, r.unknownReviews = make(chan struct{}, knownReviews), make(chan struct{}, unknownReviews)
	r.nodes, r.pods, r.sweepAt = map[*node]*limit.Limiter{}, map[string]*limit.Limiter{}, 1024
	r.fresh, r.reviewing = map[*node]time.Time{}, map[*node]*callerReview{}
	r.mu.Unlock()
	r.ends.Go(func() {
		followRoots(ctx, authorityRoots, r.ca.answerRoots, func(roots issuer.Roots) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.roots = roots
		})
	})
}

// end stops the replica. Calls in progress end as they would have: a replica that is
// asked to stop waits for them.
func (r *replica) end() {
	r.mu.Lock()
	r.running = false
	r.mu.Unlock()
	r.stop()
	r.ends.Wait()
}

// followRoots runs an issuer's loop that refreshes the roots.
func followRoots(ctx context.Context, every time.Duration, request func(context.Context) (issuer.Roots, error), learn func(issuer.Roots)) {
	i, err := issuer.New(issuer.Config{
		Signer: rootsOf{request, trust.NewStore("https://peer", trust.Pins{})},
		Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil },
	})
	if err != nil {
		panic(err)
	}
	i.FollowRoots(ctx, every, func(roots issuer.Roots, err error) {
		if err == nil {
			learn(roots)
		}
	})
}

// sign handles a node's request for a certificate for the pod.
func (a *authority) sign(ctx context.Context, n *node, pod string) error {
	a.count(&a.asked)
	err := a.call(ctx, n, func(ctx context.Context, r *replica) error { return r.sign(ctx, n, pod) })
	if issuer.OutcomeOf(err) == issuer.Unavailable {
		a.count(&a.failed)
	}
	return err
}

// answerRoots handles a node's request for the roots.
func (a *authority) answerRoots(ctx context.Context, n *node) (roots issuer.Roots, err error) {
	a.count(&a.rooted)
	err = a.call(ctx, n, func(ctx context.Context, r *replica) error {
		release, err := r.admit(ctx, n)
		if err != nil {
			return err
		}
		defer release()
		r.mu.Lock()
		defer r.mu.Unlock()
		if roots = r.roots; len(roots.Own) == 0 {
			return errRefused
		}
		return nil
	})
	return roots, err
}

func (a *authority) count(r *rate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.count(time.Now())
}

// call is the node's gRPC client: it uses the running replicas in turn, and retries a
// call at another one if one is unavailable.
func (a *authority) call(ctx context.Context, n *node, do func(context.Context, *replica) error) error {
	limited, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	began := time.Now()
	for attempt, pause := 1, 20*time.Millisecond; ; attempt, pause = attempt+1, 3*pause {
		r := a.next(n)
		if r == nil {
			return errRefused
		}
		err := do(limited, r)
		switch {
		case limited.Err() != nil && ctx.Err() == nil:
			return errSlow
		case issuer.OutcomeOf(err) != issuer.Unavailable || errors.Is(err, errNodeLimit):
			n.gainRetry()
			return err
		case !n.useRetry() || attempt == attempts || time.Since(began) > handlerTimeout/2:
			return err
		}
		time.Sleep(pause)
	}
}

// next returns a running replica, or nil.
func (a *authority) next(n *node) *replica {
	for range a.replicas {
		r := a.replicas[n.turn.Add(1)%uint32(len(a.replicas))]
		r.mu.Lock()
		running := r.running
		r.mu.Unlock()
		if running {
			return r
		}
	}
	return nil
}

// sign has the API server review the tokens, and the CA sign.
func (r *replica) sign(ctx context.Context, n *node, pod string) error {
	ctx, cancel := context.WithTimeout(ctx, handlerTimeout)
	defer cancel()
	release, err := r.admit(ctx, n)
	if err != nil {
		return err
	}
	defer release()
	done, err := acquire(ctx, r.podReviews)
	if err != nil {
		return err
	}
	err = r.review(ctx)
	done()
	if err != nil {
		return err
	}
	if !r.allowPod(pod) {
		r.authority.limited.Add(1)
		return errPodLimit
	}
	return r.ca.sign(ctx)
}

// admit lets a call of the node in, once the caller is known.
func (r *replica) admit(ctx context.Context, n *node) (release func(), err error) {
	if err := r.reviewCaller(ctx, n); err != nil {
		return nil, err
	}
	if !r.allowNode(n) {
		r.authority.limited.Add(1)
		time.Sleep(overLimit)
		return nil, errNodeLimit
	}
	return acquire(ctx, r.calls)
}

// callerReview is a review in progress, for all calls of the node that wait for it.
type callerReview struct {
	ended chan struct{}
	err   error
}

// reviewCaller has the node's own token reviewed, unless a review of the last seconds
// stands for this one.
func (r *replica) reviewCaller(ctx context.Context, n *node) error {
	r.mu.Lock()
	fresh, known := r.fresh[n]
	if time.Now().Before(fresh) {
		r.mu.Unlock()
		return nil
	}
	review := r.reviewing[n]
	if review == nil {
		review = &callerReview{ended: make(chan struct{})}
		r.reviewing[n] = review
		slots := r.unknownReviews
		if known {
			slots = r.knownReviews
		}
		// The call that begins the review may end before the others.
		r.ends.Go(func() {
			review.err = r.reviewWithin(slots)
			r.mu.Lock()
			defer r.mu.Unlock()
			if review.err == nil {
				r.fresh[n] = time.Now().Add(keepReview)
			}
			delete(r.reviewing, n)
			close(review.ended)
		})
	}
	r.mu.Unlock()
	select {
	case <-review.ended:
		return review.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", issuer.Ended(ctx), ctx.Err())
	}
}

func (r *replica) reviewWithin(slots chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), reviewTimeout)
	defer cancel()
	release, err := acquire(ctx, slots)
	if err != nil {
		return err
	}
	defer release()
	return r.review(ctx)
}

// review has a token reviewed.
func (r *replica) review(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	return r.api.review(ctx)
}

// acquire waits for a slot.
func acquire(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", issuer.Ended(ctx), ctx.Err())
	}
}

func (r *replica) allowNode(n *node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes[n] == nil {
		r.nodes[n] = limit.NewLimiter(limitOfNode, burstOfNode)
	}
	return r.nodes[n].Allow()
}

// allowPod forgets full buckets, as the authority does.
func (r *replica) allowPod(pod string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	bucket := r.pods[pod]
	if bucket == nil {
		if len(r.pods) >= r.sweepAt {
			now := time.Now()
			maps.DeleteFunc(r.pods, func(_ string, b *limit.Limiter) bool { return b.TokensAt(now) >= burstOfPod })
			r.sweepAt = max(1024, 2*len(r.pods))
		}
		bucket = limit.NewLimiter(limitOfPod, burstOfPod)
		r.pods[pod] = bucket
	}
	return bucket.Allow()
}
