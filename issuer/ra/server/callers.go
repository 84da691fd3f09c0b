package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
)

const (
	// keepReview is how long a successful review of a caller is kept. The API server
	// keeps it as long: TokenSuccessCacheTTL in
	// https://github.com/kubernetes/kubernetes/blob/master/pkg/kubeapiserver/options/authentication.go
	keepReview = 10 * time.Second
	// maxCallers bounds the tokens that are remembered: for a fleet of 5,000 nodes.
	maxCallers = 16384
	// knownReviews and strangersReviews bound the reviews of callers at a time: of node
	// plugins' pods that the API server has confirmed before, and of others. Strangers wait
	// in turn by address, so that an address with many tokens does not delay another one.
	// Together with podReviews they are not more than client-go keeps connections.
	knownReviews     = 4
	strangersReviews = 5
	// waitingStrangers bounds the calls of an address that wait for a review.
	waitingStrangers = 32
)

var (
	// rejectionsRate bounds the reviews of an address that end with a rejection.
	rejectionsRate = Limit{Rate: 10, Burst: 50}
	// otherIssuersRate bounds the reviews of tokens of another issuer than that of all
	// tokens before. The API server has another issuer after it was configured anew.
	otherIssuersRate = Limit{Rate: 1, Burst: 5}
)

// callers tells which pod a call is from. Everything in it can be asked by anybody who
// reaches the port: a token costs a review by the API server only if its claims are
// those of a node plugin.
type callers struct {
	reviewer       Reviewer
	plugin         ServiceAccount
	rejections     *limiter // of an address, or of a known pod
	known, unknown *slots
	otherIssuers   *rate.Limiter
	reviews        singleflight.Group

	mu       sync.Mutex
	accepted map[tokenHash]acceptedToken
	pods     map[string]bool // UIDs of node plugins' pods, which only who may read pods knows
	issuers  map[string]bool // of accepted tokens, and of the server's own
}

type tokenHash [sha256.Size]byte

// acceptedToken is a token that the API server has accepted.
type acceptedToken struct {
	pod    issuer.Pod
	fresh  time.Time // until when the review stands for another one
	expiry time.Time // until when the token is remembered, by its own claim
}

// newCallers returns the callers of the API server with the issuer, which is empty if it
// is not known.
func newCallers(r Reviewer, plugin ServiceAccount, tokenIssuer string) *callers {
	c := &callers{
		reviewer: r, plugin: plugin,
		rejections:   newLimiter(rejectionsRate),
		known:        newSlots(knownReviews, 1, waitingStrangers),
		unknown:      newSlots(strangersReviews, strangersReviews, waitingStrangers),
		otherIssuers: rate.NewLimiter(rate.Limit(otherIssuersRate.Rate), otherIssuersRate.Burst),
		accepted:     map[tokenHash]acceptedToken{}, pods: map[string]bool{}, issuers: map[string]bool{},
	}
	if tokenIssuer != "" {
		c.issuers[tokenIssuer] = true
	}
	return c
}

// bearerToken returns the caller's own token, from the headers of the call.
func bearerToken(headers http.Header) (token issuer.Token, err error) {
	values := headers.Values("Authorization")
	if len(values) != 1 {
		return token, fmt.Errorf("%w: the caller's token: there is none", issuer.CallerRejected)
	}
	text, bearer := strings.CutPrefix(values[0], "Bearer ")
	if !bearer {
		return token, fmt.Errorf("%w: the caller's token: it is not a bearer token", issuer.CallerRejected)
	}
	if token, err = parseToken(text); err != nil {
		return token, fmt.Errorf("%w: the caller's token: %w", issuer.CallerRejected, err)
	}
	return token, nil
}

// identify returns the pod of the node plugin that calls from the address. The reason
// is a value of the metric's label.
func (c *callers) identify(ctx context.Context, headers http.Header, address netip.Prefix) (pod issuer.Pod, reason string, err error) {
	token, err := bearerToken(headers)
	if err != nil {
		return pod, rejectedToken, err
	}
	said, err := readClaims(token)
	if err != nil {
		return pod, rejectedToken, fmt.Errorf("%w: the caller's token: %w: %w", issuer.CallerRejected, ErrRejected, err)
	}
	now := time.Now()
	if err := said.check(c.plugin, now); errors.Is(err, errNotPlugin) {
		return pod, rejectedClaims, err
	} else if err != nil {
		return pod, rejectedClaims, fmt.Errorf("%w: the caller's token: %w", issuer.CallerRejected, err)
	}
	hash := tokenHash(sha256.Sum256([]byte(token.Reveal())))
	seen, podKnown, issuerKnown := c.look(hash, said)
	if now.Before(seen.fresh) {
		return seen.pod, "", nil
	}
	queue, key := c.unknown, address.String()
	if podKnown {
		queue, key = c.known, said.Kubernetes.Pod.UID
	}
	switch {
	case c.rejections.empty(key):
		return pod, rejectedRate, errManyRejections
	case !podKnown && !issuerKnown && !c.otherIssuers.Allow():
		return pod, rejectedClaims, fmt.Errorf("%w: the caller's token: %w: its issuer is not that of the API server", issuer.CallerRejected, ErrRejected)
	}
	return c.review(ctx, token, hash, said, queue, key)
}

// look returns what is remembered of the token, of its pod and of its issuer.
func (c *callers) look(hash tokenHash, said claims) (seen acceptedToken, podKnown, issuerKnown bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.accepted[hash], c.pods[said.Kubernetes.Pod.UID], len(c.issuers) == 0 || c.issuers[said.Issuer]
}

// review has the API server review the token, once for all calls that wait for it.
func (c *callers) review(ctx context.Context, token issuer.Token, hash tokenHash, said claims, queue *slots, key string) (pod issuer.Pod, reason string, err error) {
	// The call that begins the review may end before the others that wait for it.
	shared := klog.NewContext(context.WithoutCancel(ctx), klog.FromContext(ctx))
	result := c.reviews.DoChan(string(hash[:]), func() (pod any, err error) {
		defer panics.Recover(shared, "review the caller's token", &err)
		return c.reviewOnce(shared, token, hash, said, queue, key)
	})
	select {
	case r := <-result:
		err = r.Err
		if err == nil {
			return r.Val.(issuer.Pod), "", nil
		}
	case <-ctx.Done():
		err = issuer.Ended(ctx).Because(fmt.Errorf("review the caller's token: %w", ctx.Err()))
	}
	switch {
	case errors.Is(err, errTooManyOfAddress):
		return pod, rejectedRate, err
	case errors.Is(err, errNotPlugin), errors.Is(err, ErrRejected):
		return pod, rejectedReview, err
	}
	return pod, rejectedUnavailable, err
}

func (c *callers) reviewOnce(ctx context.Context, token issuer.Token, hash tokenHash, said claims, queue *slots, key string) (pod issuer.Pod, err error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	release, err := queue.acquire(ctx, key)
	switch {
	case errors.Is(err, errTooManyWait):
		return pod, fmt.Errorf("%w: tokens to review", errTooManyOfAddress)
	case err != nil:
		return pod, issuer.Ended(ctx).Because(fmt.Errorf("wait for other token reviews: %w", err))
	}
	defer release()
	if c.rejections.empty(key) { // emptied while the call waited
		return pod, errManyRejections
	}
	pod, err = c.reviewer.Review(ctx, token)
	switch {
	case err == nil && ServiceAccount{pod.Namespace, pod.ServiceAccount} != c.plugin:
		err = fmt.Errorf("%w: the caller is service account %s/%s, the node plugins are %s", errNotPlugin, pod.Namespace, pod.ServiceAccount, c.plugin)
	case errors.Is(err, ErrRejected):
		err = fmt.Errorf("%w: the caller's token: %w", issuer.CallerRejected, err)
	case err != nil:
		return pod, fmt.Errorf("the caller's token: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.accepted, hash)
		c.rejections.charge(key)
		return pod, err
	}
	c.remember(hash, said, pod)
	return pod, nil
}

// remember keeps a successful review. The caller holds the mutex.
func (c *callers) remember(hash tokenHash, said claims, pod issuer.Pod) {
	now := time.Now()
	if len(c.accepted) >= maxCallers {
		maps.DeleteFunc(c.accepted, func(_ tokenHash, a acceptedToken) bool { return now.After(a.expiry) })
		for other := range c.accepted { // any: these are node plugins' tokens, and a new review is cheap
			if len(c.accepted) < maxCallers {
				break
			}
			delete(c.accepted, other)
		}
	}
	if len(c.pods) >= maxCallers {
		clear(c.pods)
	}
	c.pods[pod.UID] = true
	if len(c.issuers) < 16 {
		c.issuers[said.Issuer] = true
	}
	fresh := now.Add(keepReview)
	if expiry := said.expiry(); expiry.Before(fresh) {
		fresh = expiry
	}
	c.accepted[hash] = acceptedToken{pod, fresh, said.expiry()}
}
