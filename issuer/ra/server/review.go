package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	authentication "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/clock"
	"github.com/flexstack/step-csi/issuer/proxies"
)

const (
	// maxToken bounds a token, in bytes. The tokens of Kubernetes have about 1.5 KiB.
	maxToken = 16 << 10
	// podReviews and podReviewsOfNode bound the reviews of pods' tokens at a time. Each
	// takes a connection of its own, and client-go keeps 25 idle ones.
	podReviews       = 16
	podReviewsOfNode = 8
	// reviewTimeout is shorter than handlerTimeout, so that the caller gets the error
	// that the API server does not answer.
	reviewTimeout = 10 * time.Second
)

// The API server adds these to the user of a token that is bound to a pod. See
// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens
const (
	podName  = "authentication.kubernetes.io/pod-name"
	podUID   = "authentication.kubernetes.io/pod-uid"
	nodeName = "authentication.kubernetes.io/node-name"
)

// Reviewer has the API server review service-account tokens.
type Reviewer interface {
	// Review returns the pod that the token is bound to. The error wraps ErrRejected
	// if the token is not valid, not for the audience step-csi, or not bound to a pod
	// that exists, and issuer.Unavailable if the API server does not answer.
	Review(ctx context.Context, token issuer.Token) (issuer.Pod, error)
}

// ErrRejected is the error for a token that does not identify a pod.
var ErrRejected = errors.New("the token is rejected")

// parseToken rejects text that cannot be a JSON Web Token, without a call to the API
// server.
func parseToken(text string) (issuer.Token, error) {
	if len(text) > maxToken || strings.Count(text, ".") != 2 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return issuer.Token{}, fmt.Errorf("%w: it is not a JSON Web Token", ErrRejected)
	}
	return issuer.NewToken(text, time.Time{}), nil
}

// reviewPod has the API server review the pod's token for the node plugin that calls.
func (s *Server) reviewPod(ctx context.Context, caller issuer.Pod, text string) (pod issuer.Pod, err error) {
	token, err := parseToken(text)
	if err != nil {
		return pod, fmt.Errorf("%w: %w", issuer.NoPodToken, err)
	}
	release, err := s.podReviews.acquire(ctx, caller.Node)
	if err != nil {
		return pod, issuer.Ended(ctx).Because(fmt.Errorf("wait for other token reviews: %w", err))
	}
	defer release()
	pod, err = s.reviewer.Review(ctx, token)
	switch {
	case errors.Is(err, ErrRejected):
		err = fmt.Errorf("%w: %w", issuer.NoPodToken, err)
	case err != nil:
		err = fmt.Errorf("the pod's token: %w", err)
	}
	return pod, err
}

// runningPod has the API server review the pod's token for the node plugin that calls, and
// checks that the node plugin acts for this pod: the pod runs on the plugin's node, and is
// no node plugin itself, which runs on every node.
func (s *Server) runningPod(ctx context.Context, caller issuer.Pod, text string, entry *auditEntry) (issuer.Pod, error) {
	pod, err := s.reviewPod(ctx, caller, text)
	entry.addPod(pod)
	switch {
	case err != nil:
		return pod, err
	case pod.Node != caller.Node:
		return pod, fmt.Errorf("%w: pod %s/%s runs on another node than the caller, %s", issuer.Denied, pod.Namespace, pod.Name, caller.Node)
	case s.isPlugin(pod):
		return pod, fmt.Errorf("%w: the node plugin itself gets no certificates", issuer.Denied)
	}
	return pod, nil
}

func (s *Server) isPlugin(pod issuer.Pod) bool {
	return ServiceAccount{pod.Namespace, pod.ServiceAccount} == s.plugin
}

// TokenReview is a Reviewer that calls the API server.
type TokenReview struct {
	client *rest.RESTClient
	clock  *clock.Comparison // with that of the API server
}

var _ Reviewer = (*TokenReview)(nil)

// NewTokenReview returns a Reviewer for the API server of the configuration. The
// process needs the right to create tokenreviews, and no other.
func NewTokenReview(c *rest.Config) (*TokenReview, error) {
	scheme := runtime.NewScheme()
	if err := authentication.AddToScheme(scheme); err != nil {
		return nil, err
	}
	meta.AddToGroupVersion(scheme, authentication.SchemeGroupVersion)
	c = rest.CopyConfig(c)
	c.APIPath = "/apis"
	c.GroupVersion = &authentication.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf
	// A review is one small message each way, for which HTTP/2 is slower.
	c.NextProtos = []string{"http/1.1"}
	c.QPS = -1 // no limit: the server limits the calls of each node and pod
	compared := &clock.Comparison{}
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return comparing{next, compared} })
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &TokenReview{client, compared}, nil
}

// comparing compares the clocks by each answer.
type comparing struct {
	http.RoundTripper
	clock *clock.Comparison
}

// RoundTrip implements http.RoundTripper.
func (c comparing) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := time.Now()
	response, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		c.clock.Observe(response.Header.Get("Date"), sent)
	}
	return response, err
}

// Review implements Reviewer. It caches nothing: an expired token, or the token of a
// deleted pod, is rejected as soon as the API server rejects it.
func (t *TokenReview) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	review := &authentication.TokenReview{Spec: authentication.TokenReviewSpec{
		Token:     token.Reveal(),
		Audiences: []string{issuer.TokenAudience},
	}}
	reviewed := &authentication.TokenReview{}
	request := t.client.Post().Resource("tokenreviews").Body(review)
	if err := request.Do(ctx).Into(reviewed); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in time: %w", err)
		}
		var answered *apierrors.StatusError
		if !errors.As(err, &answered) {
			err = proxies.Explain(err, request.URL())
		}
		return issuer.Pod{}, issuer.Ended(ctx).Because(fmt.Errorf("cannot review a token at the API server: %w", err))
	}
	pod, err := boundPod(reviewed.Status)
	if err != nil && (strings.Contains(err.Error(), "expired") || strings.Contains(err.Error(), "not valid yet")) {
		err = fmt.Errorf("%w (%s)", err, t.clock.Describe("API server"))
	}
	return pod, err
}

// boundPod returns the pod of a reviewed token.
func boundPod(s authentication.TokenReviewStatus) (issuer.Pod, error) {
	if !s.Authenticated {
		reason := strings.TrimSuffix(strings.TrimPrefix(s.Error, "["), "]") // the API server adds brackets
		return issuer.Pod{}, fmt.Errorf("%w: %s", ErrRejected, cmp.Or(reason, "it is not valid"))
	}
	if !slices.Contains(s.Audiences, issuer.TokenAudience) {
		return issuer.Pod{}, fmt.Errorf("%w: it is not for the audience %s", ErrRejected, issuer.TokenAudience)
	}
	account, ok := strings.CutPrefix(s.User.Username, "system:serviceaccount:")
	namespace, name, found := strings.Cut(account, ":")
	if !ok || !found {
		return issuer.Pod{}, fmt.Errorf("%w: it is not the token of a service account", ErrRejected)
	}
	pod := issuer.Pod{
		Namespace:      namespace,
		Name:           only(s.User.Extra[podName]),
		UID:            only(s.User.Extra[podUID]),
		ServiceAccount: name,
		Node:           only(s.User.Extra[nodeName]),
	}
	switch {
	case pod.Name == "" || pod.UID == "":
		return issuer.Pod{}, fmt.Errorf("%w: it is not bound to a pod", ErrRejected)
	case pod.Node == "":
		return issuer.Pod{}, fmt.Errorf("%w: it is not bound to a node, which needs Kubernetes 1.30 or later", ErrRejected)
	}
	return pod, nil
}

// only returns the value if there is exactly one.
func only(values authentication.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}
