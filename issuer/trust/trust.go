// Package trust is how an authority is recognized at first: by roots that the
// administrator has configured, or by the fingerprint of one; never by nothing.
package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"go.step.sm/crypto/pemutil"
)

// Pins are what the administrator has configured: one of the two.
type Pins struct {
	Roots []*x509.Certificate
	// Fingerprint is the SHA-256 of a root, in lower-case hexadecimal.
	Fingerprint string
}

// Parse takes either a fingerprint, in hexadecimal, or a bundle of roots in PEM.
// Its errors begin with the key in the configuration.
func Parse(fingerprint string, bundle []byte) (Pins, error) {
	switch {
	case fingerprint == "" && len(bundle) == 0:
		return Pins{}, errors.New("fingerprint: give the CA's root fingerprint (step certificate fingerprint root_ca.crt), or a caBundleFile")
	case fingerprint != "" && len(bundle) > 0:
		return Pins{}, errors.New("fingerprint: there is a caBundleFile, too; give one of the two")
	case fingerprint != "":
		digits := strings.ToLower(strings.NewReplacer(":", "", "-", "").Replace(fingerprint))
		if b, err := hex.DecodeString(digits); err != nil || len(b) != sha256.Size {
			return Pins{}, fmt.Errorf("fingerprint: %q is not a SHA-256 in hexadecimal (64 digits)", fingerprint)
		}
		return Pins{Fingerprint: digits}, nil
	}
	roots, err := pemutil.ParseCertificateBundle(bundle)
	if err != nil {
		return Pins{}, fmt.Errorf("caBundleFile: %w", err)
	}
	return Pins{Roots: roots}, nil
}

// ParseURL accepts the URL of an authority: https, a host, perhaps a port, and
// nothing else. Its errors begin with the key in the configuration.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("url: %q is not of the form https://<DNS name of the authority>[:<port>]", text)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// Among returns the roots that are pinned: the configured ones, or the one among
// the offered certificates that has the fingerprint. There is none if the
// authority is another.
func (p Pins) Among(offered []*x509.Certificate) []*x509.Certificate {
	if p.Fingerprint == "" {
		return p.Roots
	}
	for _, certificate := range offered {
		if Fingerprint(certificate) == p.Fingerprint {
			return []*x509.Certificate{certificate}
		}
	}
	return nil
}

// Fingerprint is the SHA-256 of a certificate, as step certificate fingerprint
// prints it.
func Fingerprint(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// Union has the certificates of both, each once.
func Union(a, b []*x509.Certificate) []*x509.Certificate {
	all := slices.Clone(a)
	for _, certificate := range b {
		if !slices.ContainsFunc(all, certificate.Equal) {
			all = append(all, certificate)
		}
	}
	return all
}

// Pool is what crypto/x509 wants.
func Pool(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool
}
