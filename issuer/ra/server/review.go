package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authentication "k8s.io/api/authentication/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/flexstack/step-csi/issuer"
)

// maxReviews bounds the reviews at a time. Each takes a connection of its own, and
// client-go keeps as many idle ones.
const maxReviews = 16

// reviewTimeout is shorter than handlerTimeout, so that the caller gets the error
// that the API server does not answer.
const reviewTimeout = 10 * time.Second

// The API server adds these to the user of a token that is bound to a pod. See
// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens
const (
	podName  = "authentication.kubernetes.io/pod-name"
	podUID   = "authentication.kubernetes.io/pod-uid"
	nodeName = "authentication.kubernetes.io/node-name"
)

// TokenReview is a Reviewer that calls the API server.
type TokenReview struct {
	client  *rest.RESTClient
	reviews chan struct{} // has one element for each review in progress
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
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &TokenReview{client, make(chan struct{}, maxReviews)}, nil
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
	select {
	case t.reviews <- struct{}{}:
		defer func() { <-t.reviews }()
	case <-ctx.Done():
		return issuer.Pod{}, fmt.Errorf("%w: wait for other token reviews: %w", issuer.Ended(ctx), ctx.Err())
	}
	reviewed := &authentication.TokenReview{}
	err := t.client.Post().Resource("tokenreviews").Body(review).Do(ctx).Into(reviewed)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in time: %w", err)
		}
		outcome := issuer.Unavailable
		if ctx.Err() != nil {
			outcome = issuer.Ended(ctx)
		}
		return issuer.Pod{}, fmt.Errorf("%w: review a token at the API server: %w", outcome, err)
	}
	return boundPod(reviewed.Status)
}

// boundPod returns the pod of a reviewed token.
func boundPod(s authentication.TokenReviewStatus) (issuer.Pod, error) {
	if !s.Authenticated {
		return issuer.Pod{}, fmt.Errorf("%w: %w", ErrRejected, reason(s.Error))
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

// reason removes the brackets that the API server puts around its errors.
func reason(text string) error {
	if text == "" {
		return errors.New("it is not valid")
	}
	return errors.New(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
}
