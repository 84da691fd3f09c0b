package ra

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

var _ issuer.Revoker = (*Signer)(nil)

// Revoke has the registration authority revoke the certificate. The proof is the
// private key of the certificate: the pod may be deleted, and its token with it.
func (s *Signer) Revoke(ctx context.Context, r issuer.Revocation) error {
	if len(r.Chain) == 0 || r.Key.Signer == nil {
		return errors.New("the certificate or its key could not be read from the volume, " +
			"and the registration authority revokes only for the holder of the key")
	}
	request := &rapb.RevokeRequest{
		Issuer: s.config.Issuer, Chain: Raw(r.Chain), PodUid: r.Pod.UID, Time: time.Now().Unix(),
	}
	hash := crypto.SHA256
	if ProofAlgorithm(r.Key.Public()) == x509.PureEd25519 {
		hash = 0
	}
	var err error
	if request.Signature, err = crypto.SignMessage(r.Key, rand.Reader, Proof(request, r.Pod.Node), hash); err != nil {
		return fmt.Errorf("sign with the key of the certificate: %w", err)
	}
	return s.call(ctx, callRevoke, func(ctx context.Context, options ...grpc.CallOption) error {
		_, err := s.client.Revoke(ctx, request, append(options, grpc.WaitForReady(true))...)
		return err
	})
}

// Proof is the message that the certificate's key signs: revoke this certificate, at
// this time, for the caller on this node. No other protocol has messages with this
// beginning.
func Proof(r *rapb.RevokeRequest, node string) []byte {
	text := fmt.Appendf(nil, "step-csi: revoke this certificate, pod %q, node %q, issuer %q, time %d\n",
		r.GetPodUid(), node, r.GetIssuer(), r.GetTime())
	return append(text, r.GetChain()[0]...)
}

// ProofAlgorithm is the signature algorithm for a type of key.
func ProofAlgorithm(public crypto.PublicKey) x509.SignatureAlgorithm {
	switch public.(type) {
	case *ecdsa.PublicKey:
		return x509.ECDSAWithSHA256
	case *rsa.PublicKey:
		return x509.SHA256WithRSA
	case ed25519.PublicKey:
		return x509.PureEd25519
	}
	return x509.UnknownSignatureAlgorithm
}
