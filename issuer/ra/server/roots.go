package server

import (
	"context"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// Roots implements rapb.RegistrationAuthorityServer.
func (s *Server) Roots(ctx context.Context, req *rapb.RootsRequest) (*rapb.RootsResponse, error) {
	response, err := s.roots(ctx, req)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Roots request failed", "issuer", req.GetIssuer(), "code", code(err).String())
	}
	return response, err
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
