package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const (
	// proofAge is how far the time in a proof may be off, either way.
	proofAge = 10 * time.Minute
	// maxChain bounds the certificates that are parsed.
	maxChain = 8
)

// revocation is what is known about one request to revoke, for the audit log.
type revocation struct {
	issuer, podUID string
	caller         issuer.Pod
	leaf           *x509.Certificate // nil until it is known to be one of the issuer's
}

// Revoke implements rapb.RegistrationAuthorityServer.
func (s *Server) Revoke(ctx context.Context, req *rapb.RevokeRequest) (*rapb.RevokeResponse, error) {
	r := &revocation{issuer: req.GetIssuer(), podUID: req.GetPodUid()}
	err := s.revoke(ctx, req, r)
	s.metrics.revoked(s.knownName(r.issuer), code(err))
	r.record(ctx, err)
	if err != nil {
		return nil, err
	}
	return &rapb.RevokeResponse{}, nil
}

// revoke revokes for a node plugin what it has the private key of. Which pod the
// certificate was for does not matter: whoever has the key could do more harm with
// it than to revoke it, and a request that is heard twice does nothing more.
func (s *Server) revoke(ctx context.Context, req *rapb.RevokeRequest, r *revocation) error {
	own, err := callerToken(ctx)
	if err != nil {
		return err
	}
	if r.caller, err = s.reviewCaller(ctx, own); err != nil {
		return err
	}
	i, known := s.issuers[req.GetIssuer()]
	if !known {
		return fmt.Errorf("%w: %q", errUnknownIssuer, req.GetIssuer())
	}
	chain, err := parseChain(req.GetChain())
	if err != nil {
		return err
	}
	if err := checkProof(req, chain[0], r.caller.Node); err != nil {
		return fmt.Errorf("%w: %w", issuer.Denied, err)
	}
	err = i.Verify(ctx, chain)
	switch {
	case err != nil && issuer.OutcomeOf(err) != issuer.Failed:
		return err
	case err != nil:
		return fmt.Errorf("%w: the certificate is not a valid one of the issuer %q: %w", issuer.Denied, req.GetIssuer(), err)
	}
	r.leaf = chain[0]
	return i.Revoke(ctx, issuer.Revocation{Serial: chain[0].SerialNumber.String(), Chain: chain})
}

func parseChain(all [][]byte) ([]*x509.Certificate, error) {
	if len(all) == 0 || len(all) > maxChain {
		return nil, fmt.Errorf("%w: %d certificates instead of 1 to %d", errMalformed, len(all), maxChain)
	}
	chain := make([]*x509.Certificate, len(all))
	for i, der := range all {
		var err error
		if chain[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", errMalformed, i, err)
		}
	}
	return chain, nil
}

// checkProof checks that the caller, on this node, has the key of the certificate.
func checkProof(req *rapb.RevokeRequest, leaf *x509.Certificate, node string) error {
	made := time.Unix(req.GetTime(), 0)
	if off := time.Since(made); off < -proofAge || off > proofAge {
		return fmt.Errorf("the proof was made at %s, more than %s off; the clocks of the node and of the authority differ",
			made.UTC().Format(time.RFC3339), proofAge)
	}
	if err := leaf.CheckSignature(ra.ProofAlgorithm(leaf.PublicKey), ra.Proof(req, node), req.GetSignature()); err != nil {
		return fmt.Errorf("no proof that the caller, on node %s, has the key of the certificate: %w", node, err)
	}
	return nil
}

// record writes the one line that each request gets.
func (r *revocation) record(ctx context.Context, err error) {
	logger := klog.FromContext(ctx)
	values := []any{"issuer", r.issuer, "uid", r.podUID}
	if r.caller.Node != "" {
		values = append(values, "node", r.caller.Node, "plugin", r.caller.Name)
	}
	if r.leaf != nil {
		values = append(values, "serial", r.leaf.SerialNumber.String(), "commonName", r.leaf.Subject.CommonName, "dnsNames", r.leaf.DNSNames)
	}
	switch c := code(err); c {
	case codes.OK:
		logger.Info("Certificate revoked", values...)
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal:
		logger.Error(err, "Revocation failed", append(values, "code", c.String())...)
	default:
		logger.Error(err, "Revocation refused", append(values, "code", c.String())...)
	}
}
