// Package server is the registration authority: it holds the credential of the CA's
// provisioner, so that no node has to, and has the CA sign for pods whose identity
// the API server confirms. A node plugin calls it through package ra.
//
// The server trusts nothing in a request but what the API server confirms. The
// review of the pod's token tells which pod asks and on which node it runs; the
// review of the caller's token tells which node plugin calls and on which node. A
// node gets certificates only for pods that run on it. The policy decides about
// every name in the CSR.
//
// Servers share no state, so that any number of replicas can run.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// ServiceAccount names a service account.
type ServiceAccount struct{ Namespace, Name string }

// String returns namespace/name.
func (s ServiceAccount) String() string { return s.Namespace + "/" + s.Name }

// Issuer is an issuer of the registration authority.
type Issuer struct {
	*issuer.Issuer
	// RootsRefresh is the time between two requests for the CA's roots.
	RootsRefresh time.Duration
}

// Config is what a Server needs.
type Config struct {
	// Issuers by name.
	Issuers map[string]Issuer
	Serving Serving
	// Plugin is the service account of the node plugins, the only callers.
	Plugin   ServiceAccount
	Reviewer Reviewer
	// TokenIssuer is the issuer of the tokens that the API server makes. If it is
	// empty, the server learns it from the first caller.
	TokenIssuer string
	// Events makes events of pods for node plugins; nil means that there are none.
	Events EventRecorder
	Limits Limits
	// Metrics is where the metrics are registered.
	Metrics prometheus.Registerer
}

// Server is one replica of the registration authority.
type Server struct {
	rapb.UnimplementedRegistrationAuthorityServer

	issuers     map[string]Issuer
	plugin      ServiceAccount
	reviewer    Reviewer
	callers     *callers
	podReviews  *slots   // by node
	nodes       *limiter // calls
	revocations *limiter // of nodes
	reports     reports
	pods        *limiter
	serving     *serving
	metrics     *metrics
	readiness   issuer.Readiness
}

// New checks the configuration. It calls neither the CA nor the API server.
func New(c Config) (*Server, error) {
	switch {
	case len(c.Issuers) == 0 || c.Reviewer == nil || c.Metrics == nil:
		return nil, errors.New("a registration authority needs issuers, a reviewer and a registry for metrics")
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
		issuers:     c.Issuers,
		plugin:      c.Plugin,
		reviewer:    c.Reviewer,
		callers:     newCallers(c.Reviewer, c.Plugin, c.TokenIssuer),
		podReviews:  newSlots(podReviews, podReviewsOfNode, maxCallsOfNode),
		nodes:       newLimiter(limits.Node),
		revocations: newLimiter(revocationsOfNode),
		reports:     newReports(c.Events),
		pods:        newLimiter(limits.Pod),
		serving:     own,
	}
	if s.metrics, err = newMetrics(c.Metrics, own); err != nil {
		return nil, fmt.Errorf("register the metrics: %w", err)
	}
	if err := c.Metrics.Register(&s.readiness); err != nil {
		return nil, fmt.Errorf("register the metrics: %w", err)
	}
	for name := range c.Issuers {
		s.readiness.Expect(name)
		// The series exist before the first call.
		s.metrics.revocations.WithLabelValues(name, codes.OK.String())
		s.metrics.answered.WithLabelValues(name)
		s.metrics.failed.WithLabelValues(name)
	}
	return s, nil
}

// Ready returns a nil error while the server can work: its own certificate is valid, and
// at least one issuer has been reached and verified. One dead CA does not take the
// issuers of other CAs down. details has a line for each issuer that does not work, or
// that has a warning.
func (s *Server) Ready() (details string, err error) {
	return s.readiness.Details(), errors.Join(s.serving.err(), s.readiness.Err())
}

// Live returns an error if the renewal of the server's own certificate hangs. It waits for
// the locks that every connection needs, so the caller must limit how long it waits. It
// depends neither on a CA nor on the API server, and calls no socket: while many clients
// connect, that can take long in a healthy process.
func (s *Server) Live(context.Context) error {
	if c := s.metrics.connections.Load(); c != nil {
		c.sizes()
	}
	s.readiness.Details()
	return s.serving.scheduler.Stalled()
}

// Run serves on the listener until ctx ends, and then waits for the calls in flight.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer func() {
		stop()
		running.Wait()
	}()
	running.Go(func() { s.serving.keep(background) })
	for name, i := range s.issuers {
		running.Go(func() { s.readiness.Watch(background, name, i.Issuer, i.RootsRefresh) })
		running.Go(func() {
			ctx := klog.NewContext(background, klog.FromContext(background).WithValues("issuer", name))
			i.FollowRoots(ctx, i.RootsRefresh, func(_ issuer.Roots, err error) {
				at := s.metrics.answered
				if err != nil {
					at = s.metrics.failed
				}
				at.WithLabelValues(name).SetToCurrentTime()
				s.readiness.ObserveRoots(name, err)
				s.serving.renewEarly(i.CANotAfter())
			})
		})
	}
	klog.FromContext(ctx).Info("Serving the registration authority", "address", listener.Addr(), "plugin", s.plugin)
	return s.serve(ctx, listener)
}

// Roots implements rapb.RegistrationAuthorityServer.
func (s *Server) Roots(ctx context.Context, req *rapb.RootsRequest) (*rapb.RootsResponse, error) {
	response, err := s.roots(ctx, req.GetIssuer())
	if err != nil {
		klog.FromContext(ctx).Error(err, "Roots request failed", "issuer", clip(req.GetIssuer(), maxLoggedName), "node", callOf(ctx).caller.Node, "code", code(err).String())
	}
	return response, err
}

func (s *Server) roots(ctx context.Context, name string) (*rapb.RootsResponse, error) {
	i, known := s.issuers[name]
	if !known {
		return nil, fmt.Errorf("%w: %q", errUnknownIssuer, clip(name, maxLoggedName))
	}
	roots, err := i.Roots(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkAge(roots, i.RootsRefresh); err != nil {
		return nil, err
	}
	own, err := s.serving.issuer.Roots(ctx)
	if err != nil {
		return nil, err
	}
	return &rapb.RootsResponse{
		Roots: ra.Raw(roots.Own), FederatedRoots: ra.Raw(roots.Federated), RootsAgeMilliseconds: ageMilliseconds(roots),
		AuthorityRoots: ra.Raw(own.Own), AuthorityRootsAgeMilliseconds: ageMilliseconds(own),
		Intermediates: ra.Raw(i.LatestIntermediates()),
	}, nil
}
