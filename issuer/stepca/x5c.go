package stepca

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/issuer/chartvalue"
)

// x5cKey reads the certificate and its key, and checks that the provisioner accepts
// tokens that they sign. own are the roots of the CA. It returns the current key if
// everything is as it was.
func (s *Signer) x5cKey(found []*provisioner.X5C, own []*x509.Certificate, current *provisionerKey) (*provisionerKey, *provisioner.Claims, error) {
	certificateFile, privateKeyFile := chartvalue.Beside("provisioner.certificateFile"), chartvalue.Beside("provisioner.privateKeyFile")
	certificate, err := s.config.Certificate()
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", certificateFile, err)
	}
	file, err := s.config.PrivateKey()
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", privateKeyFile, err)
	}
	defer clear(file)
	key, err := parseKeyFile(file, nil)
	if errors.Is(err, errNoPassword) {
		err = errors.New("is encrypted; the type x5c needs a key without a password")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: the file %w", privateKeyFile, err)
	}
	chain, err := parseChain(certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", certificateFile, err)
	}
	if err := keyutil.VerifyPair(chain[0].PublicKey, key.Key); err != nil {
		return nil, nil, fmt.Errorf("%s: the key is not that of the certificate %s in provisioner.certificateFile: "+
			"give both files of one pair, the certificate itself before its intermediates", privateKeyFile, describe(chain[0]))
	}
	var reasons []string
	for _, p := range found {
		expires, err := checkX5C(chain, p, own)
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("%s: %v", certificateFile, err))
			continue
		}
		key.source = source(certificate, file, p.Roots)
		if current != nil && current.source == key.source {
			return current, p.Claims, nil
		}
		made, err := newX5CKey(p.Name, chain, key)
		if err != nil {
			return nil, nil, err
		}
		made.issued, made.expires = chain[0].NotBefore, expires
		return made, p.Claims, nil
	}
	return nil, nil, oneOf(reasons)
}

// parseChain returns the certificates of the file, the leaf first.
func parseChain(file []byte) ([]*x509.Certificate, error) {
	if !strings.Contains(string(file), "-----BEGIN CERTIFICATE-----") {
		return nil, errors.New("the file has no certificate in PEM (-----BEGIN CERTIFICATE-----)")
	}
	chain, err := pemutil.ParseCertificateBundle(file)
	if err != nil {
		return nil, fmt.Errorf("the file has a certificate that cannot be parsed: %w", err)
	}
	return chain, nil
}

// checkX5C checks what step-ca checks of a chain that signs tokens. It returns when the
// first certificate of the way to a root expires. own are the roots of the CA: the
// provisioner must not trust them, because every pod's certificate could then sign tokens
// for any name. See authorizeToken in
// https://github.com/smallstep/certificates/blob/v0.30.2/authority/provisioner/x5c.go.
func checkX5C(chain []*x509.Certificate, p *provisioner.X5C, own []*x509.Certificate) (expires time.Time, err error) {
	leaf, now := chain[0], time.Now()
	switch {
	case now.After(leaf.NotAfter):
		return expires, fmt.Errorf("the certificate %s expired at %s; renew it", describe(leaf), leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return expires, fmt.Errorf("the certificate %s is not valid before %s; check the clock of this node", describe(leaf), leaf.NotBefore.Format(time.RFC3339))
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return expires, fmt.Errorf("the certificate %s does not have the key usage digitalSignature, which step-ca requires to sign tokens; issue one with it", describe(leaf))
	case !allowsClients(leaf):
		return expires, fmt.Errorf("the certificate %s has extended key usages without clientAuth, which step-ca requires to sign tokens; issue one with it", describe(leaf))
	}
	roots, err := pemutil.ParseCertificateBundle(p.Roots)
	if err != nil {
		return expires, fmt.Errorf("the CA answers no roots for the X5C provisioner %q", p.Name)
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	var names []string
	for _, root := range roots {
		if slices.ContainsFunc(own, func(o *x509.Certificate) bool { return keyutil.Equal(o.PublicKey, root.PublicKey) }) {
			return expires, fmt.Errorf("the X5C provisioner %q trusts %s, which is a root of the CA itself, so that the certificate of every pod can sign tokens for any name: "+
				"give the provisioner a root that is used for nothing else", p.Name, describe(root))
		}
		options.Roots.AddCert(root)
		names = append(names, describe(root))
	}
	for _, intermediate := range chain[1:] {
		options.Intermediates.AddCert(intermediate)
	}
	ways, err := leaf.Verify(options)
	if err != nil {
		last := chain[len(chain)-1]
		return expires, fmt.Errorf("the certificate %s does not lead to a root of the X5C provisioner %q (%s): %w; "+
			"the last certificate of the file is signed by %q: add the missing intermediates to the file, or add this root to the provisioner",
			describe(leaf), p.Name, shorten(names), err, last.Issuer)
	}
	for _, way := range ways {
		first := slices.MinFunc(way, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		if first.NotAfter.After(expires) {
			expires = first.NotAfter
		}
	}
	return expires, nil
}

func allowsClients(leaf *x509.Certificate) bool {
	return len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// describe names a certificate in errors.
func describe(c *x509.Certificate) string { return fmt.Sprintf("%.200q", c.Subject) }

// newX5CKey returns a key that mints tokens with the chain in their header x5c.
func newX5CKey(name string, chain []*x509.Certificate, key *privateKey) (*provisionerKey, error) {
	encoded := make([]string, len(chain))
	for i, c := range chain {
		encoded[i] = base64.StdEncoding.EncodeToString(c.Raw)
	}
	made, err := newProvisionerKey(name, key, new(jose.SignerOptions).WithHeader("x5c", encoded))
	if err != nil {
		return nil, err
	}
	made.fragment = "x5c/" + name
	return made, nil
}

// clockSkew is how far the CA's clock may be ahead of this node's.
const clockSkew = 2 * time.Minute

// atMost returns the lifetime, or a shorter one if the certificate that signs the tokens
// expires earlier: step-ca signs no certificate that outlives it.
func (k *provisionerKey) atMost(lifetime time.Duration) (time.Duration, error) {
	if k.expires.IsZero() {
		return lifetime, nil
	}
	left := time.Until(k.expires) - clockSkew
	if left <= 0 {
		return 0, fmt.Errorf("the certificate in %s expires at %s, and step-ca signs no certificate that outlives it; renew it",
			chartvalue.Beside("provisioner.certificateFile"), k.expires.Format(time.RFC3339))
	}
	return min(lifetime, left), nil
}

// TokenCertificate implements issuer.TokenCertificate.
func (s *Signer) TokenCertificate() (issued, expires time.Time) {
	if key := s.key.Load(); key != nil {
		return key.issued, key.expires
	}
	return time.Time{}, time.Time{}
}
