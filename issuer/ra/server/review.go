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

// reviewsAtOnce bounds the questions at a time, each on a connection of its own:
// so many client-go keeps.
const reviewsAtOnce = 16

// reviewTimeout leaves the call time to tell that the API server did not answer.
const reviewTimeout = 10 * time.Second

// What the API server adds to the user of a token that is bound to a pod. See
// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens
const (
	podName  = "authentication.kubernetes.io/pod-name"
	podUID   = "authentication.kubernetes.io/pod-uid"
	nodeName = "authentication.kubernetes.io/node-name"
)

// TokenReview is a Reviewer that asks the API server of the cluster.
type TokenReview struct {
	client *rest.RESTClient
	places chan struct{}
}

var _ Reviewer = (*TokenReview)(nil)

// NewTokenReview asks the API server that the configuration names. It needs the
// right to create tokenreviews, and no other.
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
	// A question is one small message each way: HTTP/2 would only cost time.
	c.NextProtos = []string{"http/1.1"}
	c.QPS = -1 // how much may be asked is limited by node and by pod
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &TokenReview{client, make(chan struct{}, reviewsAtOnce)}, nil
}

// Review implements Reviewer. Nothing is remembered: a pod that is gone, or a
// token that has expired, is refused as soon as the API server does.
func (t *TokenReview) Review(ctx context.Context, token issuer.Token) (issuer.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	question := &authentication.TokenReview{Spec: authentication.TokenReviewSpec{
		Token:     token.Reveal(),
		Audiences: []string{issuer.TokenAudience},
	}}
	select {
	case t.places <- struct{}{}:
		defer func() { <-t.places }()
	case <-ctx.Done():
		return issuer.Pod{}, fmt.Errorf("%w: wait for other token reviews: %w", issuer.Ended(ctx), ctx.Err())
	}
	answer := &authentication.TokenReview{}
	err := t.client.Post().Resource("tokenreviews").Body(question).Do(ctx).Into(answer)
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
	return boundPod(answer.Status)
}

// boundPod reads the pod out of the API server's answer.
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
		return issuer.Pod{}, fmt.Errorf("%w: it is not that of a service account", ErrRejected)
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

// only is the one value that there must be.
func only(values authentication.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// reason leaves out what the API server repeats.
func reason(text string) error {
	if text == "" {
		return errors.New("it is not valid")
	}
	return errors.New(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
}
