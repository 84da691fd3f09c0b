package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// maxToken bounds a token, in bytes. Kubernetes' have about 1.5 KiB.
const maxToken = 16 << 10

// Sign implements rapb.RegistrationAuthorityServer.
func (s *Server) Sign(ctx context.Context, req *rapb.SignRequest) (*rapb.SignResponse, error) {
	begin := time.Now()
	d := &decision{issuer: req.GetIssuer()}
	credential, err := s.decide(ctx, req, d)
	took := time.Since(begin)
	s.metrics.signed(s.knownName(req.GetIssuer()), code(err), took)
	d.record(ctx, credential, err, took)
	if err != nil {
		return nil, err
	}
	return &rapb.SignResponse{
		Chain: ra.Raw(credential.Chain), Roots: ra.Raw(credential.Roots.Own), FederatedRoots: ra.Raw(credential.Roots.Federated),
	}, nil
}

// knownName is for metrics. A name that is no issuer's anybody could make up.
func (s *Server) knownName(name string) string {
	if _, known := s.issuers[name]; !known {
		return ""
	}
	return name
}

// decide has a certificate signed if all that is to be known about the request
// allows that. What it learns goes into d.
func (s *Server) decide(ctx context.Context, req *rapb.SignRequest, d *decision) (*issuer.Credential, error) {
	// The request is read while the API server is asked. What is wrong with it is
	// told after what is wrong with who asks.
	reading := make(chan wanted, 1)
	go func() { reading <- s.read(req) }()
	err := s.identify(ctx, req, d)
	w := <-reading
	d.request = w.request
	if err == nil {
		err = s.checkPlace(d, req.GetPod())
	}
	switch {
	case err != nil:
		return nil, err
	case !s.pods.allow(d.pod.UID):
		return nil, fmt.Errorf("%w: %s/%s; authority.limits.pod sets the limit", issuer.Throttled, d.pod.Namespace, d.pod.Name)
	case w.err != nil:
		return nil, w.err
	}
	prepared, err := w.issuer.PrepareCSR(ctx, issuer.SigningRequest{Applicant: issuer.Applicant{Pod: d.pod}, Request: *w.request, CSR: w.csr})
	if err != nil {
		return nil, err
	}
	return w.issuer.Sign(ctx, prepared)
}

// wanted is what a request asks for, or why that cannot be.
type wanted struct {
	issuer  Issuer
	csr     *x509.CertificateRequest
	request *issuer.Request // nil if it cannot be read
	err     error
}

func (s *Server) read(req *rapb.SignRequest) (w wanted) {
	var known bool
	if w.issuer, known = s.issuers[req.GetIssuer()]; !known {
		return wanted{err: fmt.Errorf("%w: %q", errUnknownIssuer, req.GetIssuer())}
	}
	// Not multiplied before it is known to fit.
	seconds, least, most := req.GetDurationSeconds(), w.issuer.Min, w.issuer.Max
	if seconds < int64(least/time.Second) || seconds > int64(most/time.Second) {
		return wanted{err: fmt.Errorf("%w: a duration of %d s is not between %s and %s, which the authority allows for the issuer %q",
			issuer.Denied, seconds, least, most, req.GetIssuer())}
	}
	csr, request, err := issuer.ReadCSR(req.GetCsr(), time.Duration(seconds)*time.Second)
	if err != nil {
		return wanted{err: fmt.Errorf("%w: %w", errMalformed, err)}
	}
	w.csr, w.request = csr, &request
	return w
}

// identify asks the API server who calls, and for whom, both at once.
func (s *Server) identify(ctx context.Context, req *rapb.SignRequest, d *decision) error {
	own, err := callerToken(ctx)
	if err != nil {
		return err
	}
	pods := issuer.NewToken(req.GetPodToken(), time.Time{})
	if err := checkToken(pods); err != nil {
		return fmt.Errorf("%w: %w", issuer.NoPodToken, err)
	}
	reviews, reviewing := errgroup.WithContext(ctx)
	reviews.Go(func() (err error) {
		d.caller, err = s.reviewCaller(reviewing, own)
		return err
	})
	d.pod, err = s.reviewer.Review(reviewing, pods)
	switch {
	case errors.Is(err, ErrRejected):
		err = fmt.Errorf("%w: %w", issuer.NoPodToken, err)
	case err != nil:
		err = fmt.Errorf("the pod's token: %w", err)
	}
	if callerErr := reviews.Wait(); callerErr != nil {
		return callerErr
	}
	return err
}

// reviewCaller returns the node plugin's pod that the token is of.
func (s *Server) reviewCaller(ctx context.Context, own issuer.Token) (issuer.Pod, error) {
	caller, err := s.reviewer.Review(ctx, own)
	switch {
	case errors.Is(err, ErrRejected):
		return issuer.Pod{}, fmt.Errorf("%w: the caller's token: %w", issuer.CallerRejected, err)
	case err != nil:
		return issuer.Pod{}, fmt.Errorf("the caller's token: %w", err)
	}
	if !s.isPlugin(caller) {
		return caller, fmt.Errorf("%w: the caller is service account %s/%s; only node plugins may ask, which are %s",
			errNotPlugin, caller.Namespace, caller.ServiceAccount, s.plugin)
	}
	if !s.nodes.allow(caller.Node) {
		return caller, fmt.Errorf("%w: %s; authority.limits.node sets the limit", errTooManyOfNode, caller.Node)
	}
	return caller, nil
}

func (s *Server) isPlugin(pod issuer.Pod) bool {
	return ServiceAccount{pod.Namespace, pod.ServiceAccount} == s.plugin
}

// checkPlace refuses pods of other nodes, a pod that is not what the node takes
// it for, and the node plugin itself: it runs on every node, in the namespace of
// the authority, whose names are not every node's.
func (s *Server) checkPlace(d *decision, claimed *rapb.Pod) error {
	says := issuer.Pod{
		Namespace: claimed.GetNamespace(), Name: claimed.GetName(), UID: claimed.GetUid(),
		ServiceAccount: claimed.GetServiceAccount(), Node: claimed.GetNode(),
	}
	switch {
	case d.pod.Node != d.caller.Node:
		return fmt.Errorf("%w: pod %s/%s runs on another node than the caller, %s",
			issuer.Denied, d.pod.Namespace, d.pod.Name, d.caller.Node)
	case says != d.pod:
		return fmt.Errorf("%w: the token is not that of the pod: the node says %s, the token %s", issuer.Denied, describe(says), describe(d.pod))
	case s.isPlugin(d.pod):
		return fmt.Errorf("%w: the node plugin itself gets no certificates", issuer.Denied)
	}
	return nil
}

func describe(p issuer.Pod) string {
	return fmt.Sprintf("%q %q of service account %q on node %q", p.Namespace+"/"+p.Name, p.UID, p.ServiceAccount, p.Node)
}

// Roots implements rapb.RegistrationAuthorityServer.
func (s *Server) Roots(ctx context.Context, req *rapb.RootsRequest) (*rapb.RootsResponse, error) {
	answer, err := s.roots(ctx, req)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Roots are refused", "issuer", req.GetIssuer())
	}
	return answer, err
}

func (s *Server) roots(ctx context.Context, req *rapb.RootsRequest) (*rapb.RootsResponse, error) {
	token, err := callerToken(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.reviewCaller(ctx, token); err != nil {
		return nil, err
	}
	i, known := s.issuers[req.GetIssuer()]
	if !known {
		return nil, fmt.Errorf("%w: %q", errUnknownIssuer, req.GetIssuer())
	}
	roots, err := i.Roots(ctx)
	if err != nil {
		return nil, err
	}
	own, err := s.serving.issuer.Roots(ctx)
	if err != nil {
		return nil, err
	}
	return &rapb.RootsResponse{
		Roots: ra.Raw(roots.Own), AuthorityRoots: ra.Raw(own.Own), FederatedRoots: ra.Raw(roots.Federated),
	}, nil
}

// callerToken takes the caller's own token out of the call's metadata.
func callerToken(ctx context.Context) (issuer.Token, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return issuer.Token{}, fmt.Errorf("%w: the caller's token: there is none", issuer.CallerRejected)
	}
	text, bearer := strings.CutPrefix(values[0], "Bearer ")
	if !bearer {
		return issuer.Token{}, fmt.Errorf("%w: the caller's token: it is no bearer token", issuer.CallerRejected)
	}
	token := issuer.NewToken(text, time.Time{})
	if err := checkToken(token); err != nil {
		return issuer.Token{}, fmt.Errorf("%w: the caller's token: %w", issuer.CallerRejected, err)
	}
	return token, nil
}

var errNoJWT = errors.New("it is not a JSON Web Token")

// checkToken spares the API server what cannot be a token.
func checkToken(t issuer.Token) error {
	text := t.Reveal()
	if len(text) > maxToken || strings.Count(text, ".") != 2 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%w: %w", ErrRejected, errNoJWT)
	}
	return nil
}
