package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const (
	// maxProofAge is how much the time in a proof may differ from the server's.
	maxProofAge = 10 * time.Minute
	// maxChain bounds the number of certificates that are parsed.
	maxChain = 8
)

// Revoke implements rapb.RegistrationAuthorityServer.
func (s *Server) Revoke(ctx context.Context, req *rapb.RevokeRequest) (*rapb.RevokeResponse, error) {
	entry := &auditEntry{"issuer", req.GetIssuer(), "uid", req.GetPodUid()}
	err := s.revoke(ctx, req, entry)
	s.metrics.revocations.WithLabelValues(s.issuerLabel(req.GetIssuer()), code(err).String()).Inc()
	if err != nil {
		entry.logError(ctx, err, "Revocation denied", "Revocation failed")
		return nil, err
	}
	klog.FromContext(ctx).Info("Certificate revoked", *entry...)
	return &rapb.RevokeResponse{}, nil
}

// revoke revokes a certificate for a node plugin that has its private key. It does not
// matter which pod had the certificate: the holder of the key could do more harm with
// it. A replayed request has no effect, because the certificate is revoked already.
func (s *Server) revoke(ctx context.Context, req *rapb.RevokeRequest, entry *auditEntry) error {
	caller, err := s.caller(ctx)
	entry.addCaller(caller)
	if err != nil {
		return err
	}
	i, known := s.issuers[req.GetIssuer()]
	if !known {
		return fmt.Errorf("%w: %q", errUnknownIssuer, req.GetIssuer())
	}
	if count := len(req.GetChain()); count == 0 || count > maxChain {
		return fmt.Errorf("%w: %d certificates instead of 1 to %d", errMalformed, count, maxChain)
	}
	chain := make([]*x509.Certificate, len(req.GetChain()))
	for n, der := range req.GetChain() {
		if chain[n], err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("%w: certificate %d: %w", errMalformed, n, err)
		}
	}
	leaf := chain[0]
	if err := checkProof(req, leaf, caller.Node); err != nil {
		return fmt.Errorf("%w: %w", issuer.Denied, err)
	}
	err = i.Verify(ctx, chain)
	switch {
	case err != nil && issuer.OutcomeOf(err) != issuer.Failed:
		return err
	case err != nil:
		return fmt.Errorf("%w: it is not a valid certificate of the issuer %q: %w", issuer.Denied, req.GetIssuer(), err)
	}
	entry.add("serial", leaf.SerialNumber.String(), "commonName", leaf.Subject.CommonName, "dnsNames", leaf.DNSNames)
	return i.Revoke(ctx, issuer.Revocation{Serial: leaf.SerialNumber.String(), Chain: chain})
}

// checkProof checks that the caller, a node plugin on this node, has the private key
// of the certificate.
func checkProof(req *rapb.RevokeRequest, leaf *x509.Certificate, node string) error {
	made := time.Unix(req.GetTime(), 0)
	if off := time.Since(made); off < -maxProofAge || off > maxProofAge {
		return fmt.Errorf("the proof was made at %s, which differs by more than %s from the clock of the registration authority; synchronize the clocks",
			made.UTC().Format(time.RFC3339), maxProofAge)
	}
	if err := leaf.CheckSignature(ra.ProofAlgorithm(leaf.PublicKey), ra.Proof(req, node), req.GetSignature()); err != nil {
		return fmt.Errorf("no proof that the caller, on node %s, has the key of the certificate: %w", node, err)
	}
	return nil
}
