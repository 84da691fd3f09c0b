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

// revokeEntry is the entry of one request to revoke in the audit log. Fields that are
// not known yet have their zero value.
type revokeEntry struct {
	issuer, podUID string
	caller         issuer.Pod
	leaf           *x509.Certificate // nil until it is verified
}

// Revoke implements rapb.RegistrationAuthorityServer.
func (s *Server) Revoke(ctx context.Context, req *rapb.RevokeRequest) (*rapb.RevokeResponse, error) {
	entry := &revokeEntry{issuer: req.GetIssuer(), podUID: req.GetPodUid()}
	err := s.revoke(ctx, req, entry)
	s.metrics.revoked(s.issuerLabel(req.GetIssuer()), code(err))
	entry.log(ctx, err)
	if err != nil {
		return nil, err
	}
	return &rapb.RevokeResponse{}, nil
}

// revoke revokes a certificate for a node plugin that has its private key. It does not
// matter which pod had the certificate: the holder of the key could do more harm with
// it. A replayed request has no effect, because the certificate is revoked already.
func (s *Server) revoke(ctx context.Context, req *rapb.RevokeRequest, entry *revokeEntry) error {
	token, err := callerToken(ctx)
	if err != nil {
		return err
	}
	if entry.caller, err = s.reviewCaller(ctx, token); err != nil {
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
	if err := checkProof(req, chain[0], entry.caller.Node); err != nil {
		return fmt.Errorf("%w: %w", issuer.Denied, err)
	}
	err = i.Verify(ctx, chain)
	switch {
	case err != nil && issuer.OutcomeOf(err) != issuer.Failed:
		return err
	case err != nil:
		return fmt.Errorf("%w: it is not a valid certificate of the issuer %q: %w", issuer.Denied, req.GetIssuer(), err)
	}
	entry.leaf = chain[0]
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

// log writes the entry, which is one line.
func (e *revokeEntry) log(ctx context.Context, err error) {
	values := []any{"issuer", e.issuer, "uid", e.podUID}
	if e.caller.Node != "" {
		values = append(values, "node", e.caller.Node, "plugin", e.caller.Name)
	}
	if e.leaf != nil {
		values = append(values, "serial", e.leaf.SerialNumber.String(), "commonName", e.leaf.Subject.CommonName, "dnsNames", e.leaf.DNSNames)
	}
	logger := klog.FromContext(ctx)
	if err == nil {
		logger.Info("Certificate revoked", values...)
		return
	}
	message := "Revocation denied"
	if isFailure(code(err)) {
		message = "Revocation failed"
	}
	logger.Error(err, message, append(values, "code", code(err).String())...)
}
