// Package issuer makes X.509 credentials for pods: it generates the key and
// the CSR, has a Signer sign it, and checks the answer as if the authority
// were hostile.
//
// It knows neither CSI nor Kubernetes objects: a pod is a few plain fields.
package issuer

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/flexstack/step-csi/issuer/trust"
)

var (
	// ErrDenied says that the policy or the authority refused the request.
	// Asking again with the same request gives the same answer.
	ErrDenied = errors.New("denied")
	// ErrUnavailable says that the authority could not be asked, or could not
	// answer. Asking again later may succeed.
	ErrUnavailable = errors.New("authority unavailable")
	// ErrNoToken says that there is no valid token of the pod to ask with. It
	// comes with ErrUnavailable: asking again with a new token may succeed.
	ErrNoToken = errors.New("no valid token of the pod")
	// ErrInvalidAnswer says that the authority has answered something else than
	// what was asked for.
	ErrInvalidAnswer = errors.New("the authority's answer is not what was asked for")
	// ErrCannotRevoke says that the authority cannot revoke any certificate.
	ErrCannotRevoke = errors.New("the authority cannot revoke")
)

// Pod is the identity of a pod as the kubelet or the API server states it,
// never as the pod's own spec does.
type Pod struct {
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	UID            string `json:"uid"`
	ServiceAccount string `json:"serviceAccount"`
	Node           string `json:"node"`
}

// Applicant is the pod that a certificate is for, with what proves it to those
// who do not take the node's word.
type Applicant struct {
	Pod
	// Token is the pod's; the zero value where there is none.
	Token Token
}

// Request is what a pod wants in its certificate. All names are normalized:
// DNS names are lower-case A-labels without a trailing dot.
type Request struct {
	CommonName     string
	DNSNames       []string
	IPAddresses    []netip.Addr
	URIs           []*url.URL
	EmailAddresses []string
	// Duration is the wanted lifetime, counted from the moment of signing.
	Duration time.Duration
	KeyType  KeyType
}

// SigningRequest is what a Signer turns into a certificate. The names of CSR
// are those of Request.
type SigningRequest struct {
	Applicant Applicant
	Request   Request
	CSR       *x509.CertificateRequest
}

// Signer is an authority that signs CSRs. Errors wrap ErrDenied or
// ErrUnavailable where one of the two applies. It is safe for concurrent use.
type Signer interface {
	// Connect checks that signing would work, as far as that can be told
	// without signing. The other methods connect by themselves.
	Connect(context.Context) error
	// Sign returns the leaf, followed by its intermediates.
	Sign(context.Context, SigningRequest) ([]*x509.Certificate, error)
	// Roots returns the authority's root certificates, all of them, obtained
	// over a verified connection: those that it has answered last.
	Roots(context.Context) (Roots, error)
	// RefreshRoots asks the authority for them.
	RefreshRoots(context.Context) (Roots, error)
	// Trust is what the authority itself is verified by.
	Trust() *trust.Store
}

// Revocation is a certificate to revoke, with what proves the right to do so to
// those who do not take the caller's word.
type Revocation struct {
	Serial string // in decimal
	Pod    Pod    // whose it was
	// Chain, leaf first, and Key; the zero values where they are not at hand.
	Chain []*x509.Certificate
	Key   PrivateKey
}

// Revoker is a Signer that can revoke what it has signed.
type Revoker interface {
	// Revoke revokes the certificate. It is no error if it is revoked already.
	// Errors wrap ErrCannotRevoke, ErrDenied or ErrUnavailable where one of them
	// applies.
	Revoke(context.Context, Revocation) error
}

// Policy decides whether a pod may have what it requests. An error that wraps
// ErrDenied says why not.
type Policy func(context.Context, Pod, Request) error

// Credential is a private key with the certificate for it.
type Credential struct {
	Key PrivateKey
	// Chain is the leaf and its intermediates, without the root.
	Chain []*x509.Certificate
	// Roots are all roots of the authority, not only the one Chain ends in.
	Roots Roots
}

// Leaf is the pod's own certificate.
func (c *Credential) Leaf() *x509.Certificate { return c.Chain[0] }

// PrivateKey is a private key that does not print.
type PrivateKey struct{ crypto.Signer }

// Format keeps the key out of logs and error messages, whatever the verb.
func (PrivateKey) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("[private key]")) }

// MarshalJSON keeps the key out of structured logs.
func (PrivateKey) MarshalJSON() ([]byte, error) { return []byte(`"[private key]"`), nil }

// Config is what an Issuer needs.
type Config struct {
	Signer Signer
	Policy Policy
}

// Issuer makes credentials.
type Issuer struct {
	signer   Signer
	policy   Policy
	verifier verifier

	followed   atomic.Pointer[Roots] // the last ones that FollowRoots got
	otherRoots chan struct{}
}

// New refuses a configuration without a signer or a policy: an issuer that
// lets everyone have every name must say so in its policy.
func New(c Config) (*Issuer, error) {
	if c.Signer == nil || c.Policy == nil {
		return nil, errors.New("an issuer needs a signer and a policy")
	}
	return &Issuer{signer: c.Signer, policy: c.Policy, otherRoots: make(chan struct{}, 1)}, nil
}

// Connect checks that the authority can be reached, trusted, and asked to sign.
func (i *Issuer) Connect(ctx context.Context) error { return i.signer.Connect(ctx) }

// Issue makes a credential for the pod. It uses key where that is not the zero
// value, and a new one of the requested type otherwise. Errors wrap ErrDenied,
// ErrUnavailable or ErrInvalidAnswer where one of them applies.
func (i *Issuer) Issue(ctx context.Context, pod Applicant, req Request, key PrivateKey) (*Credential, error) {
	if err := i.policy(ctx, pod.Pod, req); err != nil {
		return nil, err
	}
	if key.Signer == nil {
		var err error
		if key, err = req.KeyType.Generate(); err != nil {
			return nil, err
		}
	}
	csr, err := NewCSR(req, key)
	if err != nil {
		return nil, err
	}
	credential, err := i.sign(ctx, SigningRequest{Applicant: pod, Request: req, CSR: csr})
	if err != nil {
		return nil, err
	}
	credential.Key = key
	return credential, nil
}

// Sign makes a credential without its key, which whoever has made the CSR
// keeps: see ReadCSR. It is Issue in all else.
func (i *Issuer) Sign(ctx context.Context, req SigningRequest) (*Credential, error) {
	if err := i.policy(ctx, req.Applicant.Pod, req.Request); err != nil {
		return nil, err
	}
	return i.sign(ctx, req)
}

// sign has the signer sign what the policy has seen, and checks the answer.
func (i *Issuer) sign(ctx context.Context, req SigningRequest) (*Credential, error) {
	// The clock is read before the call: how long the answer takes is no
	// excuse for a certificate that lives longer.
	asked := time.Now()
	answer, err := i.signer.Sign(ctx, req)
	if err != nil {
		return nil, err
	}
	roots, err := i.signer.Roots(ctx)
	if err != nil {
		return nil, err
	}
	public := req.CSR.PublicKey
	chain, err := i.verifier.check(answer, roots.Own, req.Request, public, asked)
	if errors.Is(err, errNoChain) {
		if roots, err = i.signer.RefreshRoots(ctx); err != nil {
			return nil, err
		}
		chain, err = i.verifier.check(answer, roots.Own, req.Request, public, asked)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidAnswer, err)
	}
	i.noticeRoots(roots)
	return &Credential{Chain: chain, Roots: roots}, nil
}

// Roots returns the authority's roots, as it has answered them last.
func (i *Issuer) Roots(ctx context.Context) (Roots, error) { return i.signer.Roots(ctx) }

// Trust is what the authority itself is verified by.
func (i *Issuer) Trust() *trust.Store { return i.signer.Trust() }

// CanRevoke tells whether the signer is one that can revoke.
func (i *Issuer) CanRevoke() bool {
	_, ok := i.signer.(Revoker)
	return ok
}

// Revoke revokes a certificate that this issuer has made.
func (i *Issuer) Revoke(ctx context.Context, r Revocation) error {
	revoker, ok := i.signer.(Revoker)
	if !ok {
		return ErrCannotRevoke
	}
	return revoker.Revoke(ctx, r)
}

// Verify checks that the chain, leaf first, is one of the authority's, and that the
// leaf is valid now.
func (i *Issuer) Verify(ctx context.Context, chain []*x509.Certificate) error {
	roots, err := i.signer.Roots(ctx)
	if err != nil {
		return err
	}
	if err := checkUsage(chain[0]); err != nil {
		return err
	}
	_, err = verify(chain[0], chain[1:], roots.Own, time.Now())
	return err
}
