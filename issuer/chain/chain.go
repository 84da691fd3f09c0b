// Package chain verifies certificate chains: the leaf, the intermediates, and the root that
// they lead to. How long a certificate works is up to all of them, and not to the leaf alone.
package chain

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer/clock"
)

// Chain is a verified chain.
type Chain struct {
	// Certificates are for peers: the leaf, and each sent certificate that belongs to a valid
	// path from the leaf to a known root. They are in the order
	// that the CA sent, but a certificate follows the one that it certifies. There are no
	// self-signed certificates: peers have their own roots.
	Certificates []*x509.Certificate
	// First is the certificate that expires first on the path that is valid longest. From
	// its expiry on, every peer rejects the chain.
	First *x509.Certificate
	// CANotAfter is when the first of the other certificates than the leaf expires, on the
	// path where that is latest: no leaf of this CA works longer.
	CANotAfter time.Time
}

// NotAfter is the effective expiry: that of First.
func (c Chain) NotAfter() time.Time { return c.First.NotAfter }

// LimitedBy describes the certificate of the CA that expires before the leaf. It is empty if
// the leaf expires first.
func (c Chain) LimitedBy() string {
	if c.First == nil || c.First.Equal(c.Certificates[0]) {
		return ""
	}
	return Describe(c.First)
}

// ValidityError means that a chain is signed correctly, and that a certificate in it has
// expired or is not valid yet.
type ValidityError struct {
	Certificate *x509.Certificate
	At          time.Time
}

// Error implements error.
func (e *ValidityError) Error() string {
	if e.At.Before(e.Certificate.NotBefore) {
		return fmt.Sprintf("%s is not yet valid: it is valid from %s", Describe(e.Certificate), e.Certificate.NotBefore.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("%s expired at %s", Describe(e.Certificate), e.Certificate.NotAfter.UTC().Format(time.RFC3339))
}

// maxName bounds the length of a name in a description, in bytes. CAs choose the names.
const maxName = 100

// Describe names the certificate for logs and errors.
func Describe(c *x509.Certificate) string {
	kind, name := "certificate", c.Subject.CommonName
	switch {
	case IsSelfSigned(c):
		kind = "root"
	case c.IsCA:
		kind = "intermediate"
	}
	if name == "" {
		name = c.Subject.String()
	}
	return fmt.Sprintf("the %s %s (serial number %s)", kind, clip(strconv.Quote(name)), clip(c.SerialNumber.String()))
}

func clip(text string) string {
	if len(text) <= maxName {
		return text
	}
	return strings.ToValidUTF8(text[:maxName], "") + "…"
}

// Max is the largest number of certificates in a chain that is verified: a CA that replaces
// root and intermediate at the same time needs five.
const Max = 16

// Verify verifies the chain of sent[0], the leaf, at the time now. The leaf must lead to one
// of the roots, over others of the sent certificates, and all certificates on the path must
// be valid. Certificates that become valid within clock.Tolerance count as valid, because the
// clock of this machine may be behind that of the CA. If only their validity is missing, the error is a *ValidityError, and Verify
// returns the chain nevertheless.
func Verify(sent, roots []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) (Chain, error) {
	if len(sent) == 0 || len(sent) > Max {
		return Chain{}, fmt.Errorf("%d certificates instead of 1 to %d", len(sent), Max)
	}
	paths, err := build(sent, roots, usage)
	if err != nil {
		return Chain{}, err
	}
	c := Chain{Certificates: members(sent, paths, now)}
	valid := slices.Collect(func(yield func(path) bool) {
		for _, p := range paths {
			if p.invalid(now) == nil && !yield(p) {
				return
			}
		}
	})
	candidates := valid
	if len(valid) == 0 {
		candidates = paths
	}
	best := slices.MaxFunc(candidates, func(a, b path) int { return a.first().NotAfter.Compare(b.first().NotAfter) })
	c.First = best.first()
	for _, p := range candidates {
		if end := p[1:].first().NotAfter; end.After(c.CANotAfter) {
			c.CANotAfter = end
		}
	}
	if len(valid) == 0 {
		return c, &ValidityError{best.invalid(now), now}
	}
	return c, nil
}

// path is a path from the leaf to a root.
type path []*x509.Certificate

// first returns the certificate that expires first; of several, that nearest to the leaf.
func (p path) first() *x509.Certificate {
	return slices.MinFunc(p, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// invalid returns a certificate that is not valid at the time now, or nil.
func (p path) invalid(now time.Time) *x509.Certificate {
	if first := p.first(); now.After(first.NotAfter) {
		return first
	}
	latest := now.Add(clock.Tolerance)
	if i := slices.IndexFunc(p, func(c *x509.Certificate) bool { return latest.Before(c.NotBefore) }); i >= 0 {
		return p[i]
	}
	return nil
}

// build returns all paths from the leaf to the roots, whenever they are valid. crypto/x509
// returns only the paths that are valid at one time, and does not say which certificate has
// expired. Therefore it gets copies that are always valid.
func build(sent, roots []*x509.Certificate, usage x509.ExtKeyUsage) ([]path, error) {
	originals := map[*x509.Certificate]*x509.Certificate{}
	always := func(c *x509.Certificate) *x509.Certificate {
		valid := *c
		valid.NotBefore, valid.NotAfter = time.Time{}, time.Unix(1<<40, 0)
		originals[&valid] = c
		return &valid
	}
	pool := func(certificates []*x509.Certificate) *x509.CertPool {
		pool := x509.NewCertPool()
		for _, c := range certificates {
			pool.AddCert(always(c))
		}
		return pool
	}
	found, err := always(sent[0]).Verify(x509.VerifyOptions{
		Roots: pool(roots), Intermediates: pool(sent[1:]), KeyUsages: []x509.ExtKeyUsage{usage},
		CurrentTime: time.Unix(1, 0),
	})
	if err != nil {
		return nil, err
	}
	var paths []path
	for _, certificates := range found {
		if len(certificates) < 2 {
			return nil, errors.New("the certificate is one of the CA's roots")
		}
		for i, c := range certificates {
			certificates[i] = originals[c]
		}
		paths = append(paths, certificates)
	}
	return paths, nil
}

// members returns the certificates for peers. The paths come in the order that the CA
// prefers, so that each certificate certifies the one before it where that is possible (RFC
// 8446, section 4.4.2).
func members(sent []*x509.Certificate, paths []path, now time.Time) []*x509.Certificate {
	ranks := func(p path) (all []int) {
		for _, c := range p {
			i := slices.IndexFunc(sent, c.Equal)
			if i < 0 {
				i = len(sent) // a root
			}
			all = append(all, i)
		}
		return all
	}
	slices.SortFunc(paths, func(a, b path) int { return slices.Compare(ranks(a), ranks(b)) })
	all := sent[:1:1]
	for _, p := range paths {
		if p.invalid(now) != nil {
			continue
		}
		for _, c := range p {
			if slices.ContainsFunc(sent, c.Equal) && !slices.ContainsFunc(all, c.Equal) && !IsSelfSigned(c) {
				all = append(all, c)
			}
		}
	}
	return all
}

// IsSelfSigned tells whether the certificate is signed with its own key, as roots are.
func IsSelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}
