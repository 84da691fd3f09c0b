package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/chain"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const (
	// maxProofAge is how much the time in a proof may differ from the server's.
	maxProofAge = 10 * time.Minute
	// maxChain bounds the number of certificates that are parsed.
	maxChain = chain.Max
)

// revocationsOfNode limits the revocations of a node. All pods of a node can be deleted
// at once.
var revocationsOfNode = Limit{Rate: 10, Burst: 500}

// Revoke implements rapb.RegistrationAuthorityServer.
func (s *Server) Revoke(ctx context.Context, req *rapb.RevokeRequest) (*rapb.RevokeResponse, error) {
	entry := &auditEntry{"issuer", clip(req.GetIssuer(), maxLoggedName), "uid", clip(req.GetPodUid(), maxLoggedName)}
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
	caller := callOf(ctx).caller
	entry.addCaller(caller)
	i, known := s.issuers[req.GetIssuer()]
	switch {
	case !known:
		return fmt.Errorf("%w: %q", errUnknownIssuer, clip(req.GetIssuer(), maxLoggedName))
	case !s.revocations.allow(caller.Node):
		return fmt.Errorf("%w: revocations of %s", errTooManyOfNode, caller.Node)
	}
	chain, err := readChain(req.GetChain())
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	leaf := chain[0]
	err = i.Verify(ctx, chain)
	switch {
	case err != nil && issuer.OutcomeOf(err) != issuer.Failed:
		return err
	case err != nil:
		return fmt.Errorf("%w: it is not a valid certificate of the issuer %q: %w", issuer.Denied, req.GetIssuer(), err)
	}
	if err := checkProof(req, leaf, caller.Node); err != nil {
		return fmt.Errorf("%w: %w", issuer.Denied, err)
	}
	entry.add("serial", leaf.SerialNumber.String(), "commonName", leaf.Subject.CommonName, "dnsNames", leaf.DNSNames)
	return i.Revoke(ctx, issuer.Revocation{Serial: leaf.SerialNumber.String(), Chain: chain})
}

// readChain parses the certificates. It checks their keys before anything verifies a
// signature with one of them: the time for that grows with the size of the key.
func readChain(all [][]byte) ([]*x509.Certificate, error) {
	if len(all) == 0 || len(all) > maxChain {
		return nil, fmt.Errorf("%d certificates instead of 1 to %d", len(all), maxChain)
	}
	chain := make([]*x509.Certificate, len(all))
	for n, der := range all {
		var err error
		if chain[n], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		if err := issuer.CheckKey(chain[n].PublicKey); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
	}
	return chain, nil
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
