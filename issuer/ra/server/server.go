// Package authority is the registration authority: it holds the CA's credential,
// so that no node has to, and has certificates signed for pods whose identity the
// API server has confirmed.
//
// Nothing that a caller says is believed. Who the pod is, and on which node,
// comes from the API server's review of the pod's token; who the caller is, and
// on which node, from the review of the caller's own. A node gets certificates
// only for pods that run on it. What a certificate may say is the policy's
// business, which sees all that is in the CSR.
//
// It keeps no state, so any number of replicas can stand side by side.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// Reviewer asks the API server about service-account tokens.
type Reviewer interface {
	// Review returns the pod that the token is bound to. The error is ErrRejected
	// for a token that is not valid, not for the audience step-csi, or not bound
	// to a pod that exists; and issuer.Unavailable if there is no answer.
	Review(ctx context.Context, token issuer.Token) (issuer.Pod, error)
}

// ErrRejected says that a token proves nothing.
var ErrRejected = errors.New("the API server does not accept the token")

// ServiceAccount names a service account.
type ServiceAccount struct{ Namespace, Name string }

// String is the form namespace/name.
func (s ServiceAccount) String() string { return s.Namespace + "/" + s.Name }

// Issuer is an issuer with the lifetimes that it gives; both are included.
type Issuer struct {
	*issuer.Issuer
	Min, Max time.Duration
	// RootsRefresh is how often the CA is asked for its roots.
	RootsRefresh time.Duration
}

// Config is what a Server needs.
type Config struct {
	// Issuers by name.
	Issuers map[string]Issuer
	Serving Serving
	// Plugin is the service account of the node plugins. Nobody else may ask.
	Plugin   ServiceAccount
	Reviewer Reviewer
	Limits   Limits
	// Metrics are registered here.
	Metrics prometheus.Registerer
}

// Server is one replica of the registration authority.
type Server struct {
	rapb.UnimplementedRegistrationAuthorityServer

	issuers   map[string]Issuer
	plugin    ServiceAccount
	reviewer  Reviewer
	nodes     *limiter
	pods      *limiter
	serving   *serving
	metrics   *metrics
	readiness issuer.Readiness
}

// New refuses a configuration that cannot work. Neither the CA nor the API server
// is asked.
func New(c Config) (*Server, error) {
	switch {
	case len(c.Issuers) == 0 || c.Reviewer == nil || c.Metrics == nil:
		return nil, errors.New("a registration authority needs issuers, a reviewer and a place for metrics")
	case c.Plugin.Namespace == "" || c.Plugin.Name == "":
		return nil, errors.New("plugin: name the service account of the node plugins, as namespace/name")
	}
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return nil, err
	}
	own, err := newServing(c.Serving)
	if err != nil {
		return nil, err
	}
	s := &Server{
		issuers:  c.Issuers,
		plugin:   c.Plugin,
		reviewer: c.Reviewer,
		nodes:    newLimiter(limits.Node),
		pods:     newLimiter(limits.Pod),
		serving:  own,
	}
	if s.metrics, err = newMetrics(c.Metrics, own); err != nil {
		return nil, fmt.Errorf("register the metrics: %w", err)
	}
	for name := range c.Issuers {
		s.readiness.Expect(name)
		s.metrics.expect(name)
	}
	return s, nil
}

// Ready is nil once every issuer has answered, and as long as the authority's own
// certificate is valid; else it says what is missing.
func (s *Server) Ready() error {
	return errors.Join(s.readiness.Err(), s.serving.err(time.Now()))
}

// Run serves on the listener until the context ends, and finishes the calls in
// flight.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var ending sync.WaitGroup
	defer func() {
		stop()
		ending.Wait()
	}()
	ending.Go(func() { s.serving.keep(background) })
	for name, i := range s.issuers {
		ending.Go(func() {
			s.readiness.Connect(background, name, i.Issuer)
			ctx := klog.NewContext(background, klog.FromContext(background).WithValues("issuer", name))
			i.FollowRoots(ctx, i.RootsRefresh, func(_ issuer.Roots, err error) { s.metrics.refreshed(name, err) })
		})
	}
	klog.FromContext(ctx).Info("Serving the registration authority", "address", listener.Addr(), "plugin", s.plugin)
	return s.serve(ctx, listener)
}
