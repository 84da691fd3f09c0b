package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// Sign implements rapb.RegistrationAuthorityServer.
func (s *Server) Sign(ctx context.Context, req *rapb.SignRequest) (*rapb.SignResponse, error) {
	begin := time.Now()
	entry := &signEntry{issuer: req.GetIssuer()}
	credential, err := s.sign(ctx, req, entry)
	took := time.Since(begin)
	s.metrics.signed(s.issuerLabel(req.GetIssuer()), code(err), took)
	entry.log(ctx, credential, err, took)
	if err != nil {
		return nil, err
	}
	return &rapb.SignResponse{
		Chain: ra.Raw(credential.Chain), Roots: ra.Raw(credential.Roots.Own), FederatedRoots: ra.Raw(credential.Roots.Federated),
	}, nil
}

// sign has the CA sign for the pod that the tokens identify. It reads no more of the
// request than the pod's token before it knows the caller and the pod. What it
// learns goes into the entry of the audit log.
func (s *Server) sign(ctx context.Context, req *rapb.SignRequest, entry *signEntry) (*issuer.Credential, error) {
	if err := s.identify(ctx, req.GetPodToken(), entry); err != nil {
		return nil, err
	}
	pod := entry.pod
	if err := s.checkPod(pod, entry.caller, req.GetPod()); err != nil {
		return nil, err
	}
	if !s.pods.allow(pod.UID) {
		return nil, fmt.Errorf("%w: %s/%s; authority.limits.pod sets the limit", issuer.Throttled, pod.Namespace, pod.Name)
	}
	i, known := s.issuers[req.GetIssuer()]
	if !known {
		return nil, fmt.Errorf("%w: %q", errUnknownIssuer, req.GetIssuer())
	}
	csr, wanted, err := i.read(req)
	if err != nil {
		return nil, err
	}
	entry.request = &wanted
	prepared, err := i.PrepareCSR(ctx, issuer.SigningRequest{Applicant: issuer.Applicant{Pod: pod}, Request: wanted, CSR: csr})
	if err != nil {
		return nil, err
	}
	return i.Sign(ctx, prepared)
}

// read returns the CSR and what it asks for.
func (i Issuer) read(req *rapb.SignRequest) (*x509.CertificateRequest, issuer.Request, error) {
	// Compared in seconds: a huge number of seconds overflows a time.Duration.
	seconds := req.GetDurationSeconds()
	if seconds < int64(i.Min/time.Second) || seconds > int64(i.Max/time.Second) {
		return nil, issuer.Request{}, fmt.Errorf("%w: a duration of %d s is not between %s and %s, the bounds of the registration authority for the issuer %q",
			issuer.Denied, seconds, i.Min, i.Max, req.GetIssuer())
	}
	csr, wanted, err := issuer.ReadCSR(req.GetCsr(), time.Duration(seconds)*time.Second)
	if err != nil {
		return nil, issuer.Request{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return csr, wanted, nil
}

// identify has the API server review the tokens of the caller and of the pod, both
// at once. Errors about the caller take precedence over errors about the pod.
func (s *Server) identify(ctx context.Context, podToken string, entry *signEntry) error {
	callers, err := callerToken(ctx)
	if err != nil {
		return err
	}
	pods := issuer.NewToken(podToken, time.Time{})
	if err := checkToken(pods); err != nil {
		return fmt.Errorf("%w: %w", issuer.NoPodToken, err)
	}
	reviews, ctx := errgroup.WithContext(ctx)
	reviews.Go(func() (err error) {
		defer panics.Recover(ctx, "review the caller's token", &err)
		entry.caller, err = s.reviewCaller(ctx, callers)
		return err
	})
	entry.pod, err = s.reviewer.Review(ctx, pods)
	if callerErr := reviews.Wait(); callerErr != nil {
		return callerErr
	}
	switch {
	case errors.Is(err, ErrRejected):
		return fmt.Errorf("%w: %w", issuer.NoPodToken, err)
	case err != nil:
		return fmt.Errorf("the pod's token: %w", err)
	}
	return nil
}

// checkPod rejects a pod of another node than the caller's, and a token of another
// pod than the caller claims. It also rejects the node plugin: that pod runs on every
// node, in the namespace whose names the registration authority has.
func (s *Server) checkPod(pod, caller issuer.Pod, claim *rapb.Pod) error {
	claimed := issuer.Pod{
		Namespace: claim.GetNamespace(), Name: claim.GetName(), UID: claim.GetUid(),
		ServiceAccount: claim.GetServiceAccount(), Node: claim.GetNode(),
	}
	switch {
	case pod.Node != caller.Node:
		return fmt.Errorf("%w: pod %s/%s runs on another node than the caller, %s", issuer.Denied, pod.Namespace, pod.Name, caller.Node)
	case claimed != pod:
		return fmt.Errorf("%w: the token is not that of the pod: the caller says %s, the token %s", issuer.Denied, describe(claimed), describe(pod))
	case s.isPlugin(pod):
		return fmt.Errorf("%w: the node plugin itself gets no certificates", issuer.Denied)
	}
	return nil
}

func describe(p issuer.Pod) string {
	return fmt.Sprintf("%q %q of service account %q on node %q", p.Namespace+"/"+p.Name, p.UID, p.ServiceAccount, p.Node)
}
