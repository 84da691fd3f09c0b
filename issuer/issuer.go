// Package issuer makes X.509 credentials for pods: it generates the key and
// the CSR, has a Signer sign the CSR, and checks the answer as if the CA were hostile.
//
// It knows neither CSI nor Kubernetes objects: a pod is a few plain fields.
package issuer

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flexstack/step-csi/issuer/chain"
	"github.com/flexstack/step-csi/issuer/fair"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/trust"
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

// Owner identifies the pod where pods share a resource.
func (p Pod) Owner() fair.Owner { return fair.Owner{Namespace: p.Namespace, UID: p.UID} }

// Applicant is the pod that a certificate is for, with the token that proves its
// identity to the registration authority.
type Applicant struct {
	Pod
	// Token is the pod's; the zero value if there is none.
	Token Token
}

// Request is what a pod requests for its certificate.
type Request struct {
	CommonName     names.CommonName
	DNSNames       []names.DNSName
	IPAddresses    []names.IP
	URIs           []names.URI
	EmailAddresses []names.EmailAddress
	// Subject has the subject's fields besides the common name. They and TemplateData are
	// not in the CSR: the X.509 template of the CA's provisioner reads them.
	Subject      names.Subject
	TemplateData TemplateData
	// Duration is the requested lifetime, counted from the moment of signing. Zero means
	// the issuer's default.
	Duration time.Duration
	KeyType  KeyType
}

// AlternativeNames returns the texts of all names but the common name.
func (r Request) AlternativeNames() []string {
	return slices.Concat(names.Texts(r.DNSNames), names.Texts(r.IPAddresses), names.Texts(r.URIs), names.Texts(r.EmailAddresses))
}

// SigningRequest is what a Signer turns into a certificate. The names of CSR
// are those of Request.
type SigningRequest struct {
	Applicant Applicant
	Request   Request
	CSR       *x509.CertificateRequest
	// DefaultLifetime means that neither the pod nor the configuration has chosen
	// Request.Duration: the CA may choose a shorter one. It is for the Issuer to set.
	DefaultLifetime bool
}

// Signer has a CA sign CSRs, itself or through the registration authority. Its
// errors wrap an Outcome. It is safe for concurrent use.
type Signer interface {
	// Connect checks everything that Sign needs, without signing. The other methods
	// connect by themselves.
	Connect(context.Context) error
	// Sign returns the leaf, followed by its intermediates.
	Sign(context.Context, SigningRequest) ([]*x509.Certificate, error)
	// Roots returns all root certificates of the CA, as last answered over a
	// verified connection. It never returns older ones than before.
	Roots(context.Context) (Roots, error)
	// RefreshRoots requests the roots from the CA.
	RefreshRoots(context.Context) (Roots, error)
	// Trust holds the roots that verify the peer that Sign calls.
	Trust() *trust.Store
}

// Revocation is a certificate to revoke, with the proof that the caller may.
type Revocation struct {
	Serial string // in decimal
	Pod    Pod    // whose certificate it was
	// Chain, leaf first, and Key; the zero values if they could not be read.
	Chain []*x509.Certificate
	Key   PrivateKey
	// Unproven means that Serial, Chain and Key come from files that a pod can change.
	Unproven bool
}

// Revoker is a Signer that can revoke what it has signed.
type Revoker interface {
	// Revoke revokes the certificate. It succeeds if the certificate is revoked already.
	// The outcome is Unsupported if the CA cannot revoke at all.
	Revoke(context.Context, Revocation) error
}

// Policy decides whether a pod may have what it requests. If not, it returns an error
// that wraps Denied and says why.
type Policy func(context.Context, Pod, Request) error

// Credential is a private key with its certificate.
type Credential struct {
	Key PrivateKey
	// Chain is the leaf and its intermediates, without self-signed roots.
	Chain []*x509.Certificate
	// Roots are all roots of the CA, not only those that Chain leads to.
	Roots Roots
	// Asked is when the CA was asked to sign, by this machine's clock. The leaf's
	// NotBefore is earlier, because CAs backdate.
	Asked time.Time

	first *x509.Certificate // see chain.Chain; nil if the credential is not from an Issuer
}

// Leaf is the pod's own certificate.
func (c *Credential) Leaf() *x509.Certificate { return c.Chain[0] }

// NotAfter is the effective expiry: when the leaf, an intermediate or the root expires first.
func (c *Credential) NotAfter() time.Time { return cmp.Or(c.first, c.Leaf()).NotAfter }

// LimitedBy describes the certificate that expires at NotAfter, if it is not the leaf.
func (c *Credential) LimitedBy() string {
	return chain.Chain{Certificates: c.Chain, First: cmp.Or(c.first, c.Leaf())}.LimitedBy()
}

// UnusableError is about a certificate that the CA has issued for the requested key, and
// that failed a check or whose roots are unknown.
type UnusableError struct {
	Chain []*x509.Certificate // leaf first
	Key   PrivateKey
	Err   error
}

// Error implements error.
func (e *UnusableError) Error() string {
	return fmt.Sprintf("%v (serial number of the certificate: %s)", e.Err, e.Chain[0].SerialNumber)
}

// Unwrap returns the reason.
func (e *UnusableError) Unwrap() error { return e.Err }

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
	// Keys generates the private keys. The issuers of a process share one, because they
	// share its cores. Nil means a generator of the issuer's own.
	Keys *KeyGenerator
	// RequireDisableRenewal refuses to sign while the CA renews certificates for anyone
	// who has them and the key. The signer must be a HolderRenewal.
	RequireDisableRenewal bool
	// Lifetimes are the configured ones. Where they are zero, the CA decides.
	Lifetimes Lifetimes
	// AdditionalRoots reads more roots for pods, as ParseAdditionalRoots returns them; nil if
	// there are none. New calls it, and FollowRoots before each request.
	AdditionalRoots func() ([]*x509.Certificate, error)
	// PublicRoots are publicly trusted roots for pods, or empty.
	PublicRoots []*x509.Certificate
}

// Issuer makes credentials: the policy, the key, the CSR, the signer, and the check
// of its answer. It is safe for concurrent use.
type Issuer struct {
	signer Signer
	policy Policy
	keys   *KeyGenerator
	// requireDisabled is nil unless holders must not be able to renew.
	requireDisabled HolderRenewal
	lifetimes       Lifetimes
	shortened       sync.Once

	roots      latestRoots
	anchors    anchors
	followed   atomic.Pointer[Roots] // what FollowRoots announced last
	otherRoots chan struct{}         // an answer showed roots or a chain that are not followed
	expired    expiredRoots          // of FollowRoots
	limit      limit
}

// New refuses a configuration without a signer or a policy: an issuer that lets
// every pod have every name must say so in its policy.
func New(c Config) (*Issuer, error) {
	if c.Signer == nil || c.Policy == nil {
		return nil, errors.New("an issuer needs a signer and a policy")
	}
	if c.Keys == nil {
		c.Keys = NewKeyGenerator()
	}
	i := &Issuer{signer: c.Signer, policy: c.Policy, keys: c.Keys, lifetimes: c.Lifetimes, otherRoots: make(chan struct{}, 1)}
	i.roots.known = make(chan struct{})
	i.anchors.read, i.anchors.public = c.AdditionalRoots, c.PublicRoots
	if _, err := i.anchors.load(); err != nil {
		return nil, err
	}
	if c.RequireDisableRenewal {
		var err error
		if i.requireDisabled, err = requireDisabled(c.Signer); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// Connect checks that the CA can be reached, is trusted, and would sign.
func (i *Issuer) Connect(ctx context.Context) (err error) {
	defer panics.Recover(ctx, "connect to the issuer", &err)
	if err := i.signer.Connect(ctx); err != nil {
		return err
	}
	return i.refuseHolderRenewal(ctx)
}

// Prepared is a request that the policy allows, with its CSR. Only Prepare and
// PrepareCSR make one.
type Prepared struct {
	request SigningRequest
	key     PrivateKey
}

// Prepare applies the policy, and creates the CSR. If key is the zero value, it
// generates a key of the requested type. It calls neither the CA nor the registration
// authority.
func (i *Issuer) Prepare(ctx context.Context, pod Applicant, req Request, key PrivateKey) (Prepared, error) {
	p, err := i.PrepareCSR(ctx, SigningRequest{Applicant: pod, Request: req})
	if err != nil {
		return Prepared{}, err
	}
	if p.key = key; key.Signer == nil {
		if p.key, err = i.keys.Generate(ctx, pod.Pod, req.KeyType); err != nil {
			return Prepared{}, err
		}
	}
	p.request.CSR, err = NewCSR(req, p.key)
	return p, err
}

// PrepareCSR is Prepare for a CSR that was made elsewhere and read by ReadCSR. The
// credential will have no key.
func (i *Issuer) PrepareCSR(ctx context.Context, req SigningRequest) (Prepared, error) {
	p := Prepared{request: i.withDefaultLifetime(req)}
	return p, i.allow(ctx, p.request.Applicant.Pod, p.request.Request)
}

// errNoNames denies a request with only a common name. step-ca would make that, which the
// policy has not seen as a host, a DNS name of the certificate.
var errNoNames = errors.New("the request has no subject alternative name, and a common name alone is not one: " +
	"add service-names, dns-names or the SPIFFE ID (spiffe) to the volume attributes")

// allow applies the policy.
func (i *Issuer) allow(ctx context.Context, pod Pod, req Request) error {
	if len(req.AlternativeNames()) == 0 {
		return fmt.Errorf("%w: %w", Denied, errNoNames)
	}
	return i.policy(ctx, pod, req)
}

// Sign has the signer sign what was prepared, and checks the answer as if the CA
// were hostile. Its errors wrap an Outcome, and an UnusableError if the CA has issued a
// certificate.
func (i *Issuer) Sign(ctx context.Context, p Prepared) (*Credential, error) {
	if err := i.refuseHolderRenewal(ctx); err != nil {
		return nil, err
	}
	p, err := i.withClaimedLifetime(ctx, p)
	if err != nil {
		return nil, err
	}
	// Before the call: a slow answer must not allow a longer lifetime.
	asked := time.Now()
	answer, err := i.signer.Sign(ctx, p.request)
	if err != nil {
		return nil, err
	}
	credential, err := i.checked(ctx, p, answer, asked)
	if err != nil && len(answer) > 0 && checkKey(answer[0], p.request.CSR.PublicKey) == nil {
		err = &UnusableError{answer, p.key, err}
	}
	return credential, err
}

// checked makes a credential of the CA's answer.
func (i *Issuer) checked(ctx context.Context, p Prepared, answer []*x509.Certificate, asked time.Time) (*Credential, error) {
	roots, err := i.signer.Roots(ctx)
	if err != nil {
		return nil, err
	}
	req, public := p.request.Request, p.request.CSR.PublicKey
	verified, err := check(answer, roots.Own, req, public, asked)
	if errors.Is(err, errNoChain) {
		if roots, err = i.signer.RefreshRoots(ctx); err != nil {
			return nil, err
		}
		i.roots.store(roots)
		verified, err = check(answer, roots.Own, req, public, asked)
	}
	if expired := roots.CheckExpiry(time.Now()); err != nil && expired != nil {
		err = Unavailable.Because(expired)
	}
	if err != nil {
		return nil, i.refused(err)
	}
	// Since Prepare, the policy may have learned more names that no pod may have: those of
	// the CA's serving certificate, which the signer's first call shows.
	if err := i.allow(ctx, p.request.Applicant.Pod, p.request.Request); err != nil {
		return nil, err
	}
	i.logShortened(ctx, verified.Certificates[0], req)
	i.roots.store(roots)
	i.observe(ctx, verified)
	if known := i.followed.Load(); known != nil && !known.Same(roots) {
		i.refreshSoon()
	}
	return &Credential{Key: p.key, Chain: verified.Certificates, Roots: roots, Asked: asked, first: verified.First}, nil
}

// Issue is Prepare and Sign.
func (i *Issuer) Issue(ctx context.Context, pod Applicant, req Request, key PrivateKey) (*Credential, error) {
	p, err := i.Prepare(ctx, pod, req, key)
	if err != nil {
		return nil, err
	}
	return i.Sign(ctx, p)
}

// Roots returns the roots that the CA answered last. It requests them if there are
// none yet.
func (i *Issuer) Roots(ctx context.Context) (Roots, error) { return i.signer.Roots(ctx) }

// Trust holds the roots that verify the issuer's peer.
func (i *Issuer) Trust() *trust.Store { return i.signer.Trust() }

// CanRevoke tells whether the signer can revoke.
func (i *Issuer) CanRevoke() bool {
	_, ok := i.signer.(Revoker)
	return ok
}

// Revoke revokes a certificate of this issuer. An unproven certificate must be valid, and
// the caller must have its key. Otherwise, the outcome is Denied.
func (i *Issuer) Revoke(ctx context.Context, r Revocation) error {
	revoker, ok := i.signer.(Revoker)
	if !ok {
		return fmt.Errorf("%w: the issuer cannot revoke", Unsupported)
	}
	if r.Unproven {
		if err := i.prove(ctx, r); err != nil {
			return err
		}
	}
	return revoker.Revoke(ctx, r)
}

// prove checks that the revocation is about a certificate of this issuer whose key the
// caller has. Otherwise, a pod that forges its files could have any certificate revoked.
func (i *Issuer) prove(ctx context.Context, r Revocation) error {
	if len(r.Chain) == 0 || r.Key.Signer == nil {
		return fmt.Errorf("%w: the certificate and its key could not be read from the volume", Denied)
	}
	leaf := r.Chain[0]
	if leaf.SerialNumber.String() != r.Serial {
		return fmt.Errorf("%w: the certificate in the volume has the serial number %s", Denied, leaf.SerialNumber)
	}
	if checkKey(leaf, r.Key.Public()) != nil {
		return fmt.Errorf("%w: the key in the volume is not the certificate's", Denied)
	}
	err := i.Verify(ctx, r.Chain)
	if err != nil && OutcomeOf(err) == Failed {
		return fmt.Errorf("%w: it is not a valid certificate of this issuer: %w", Denied, err)
	}
	return err
}

// Verify checks that the chain, leaf first, ends in a root of the CA, and is valid now.
func (i *Issuer) Verify(ctx context.Context, certificates []*x509.Certificate) error {
	roots, err := i.signer.Roots(ctx)
	if err != nil {
		return err
	}
	if err := checkUsage(certificates[0]); err != nil {
		return err
	}
	_, err = verify(certificates, roots.Own, time.Now())
	return err
}
