// Package trust holds the roots by which a CA or a registration authority is verified:
// at first the pins, which the administrator configures, and then also the roots that
// the peer answered over a verified connection. There is no trust on first use.
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

// Pins are the roots that the administrator configures: the certificates or their
// fingerprints.
type Pins struct {
	Roots []*x509.Certificate
	// Fingerprints are the SHA-256 of roots, in lower-case hexadecimal.
	Fingerprints []string
}

// Parse parses either fingerprints in hexadecimal, separated by commas, or a bundle of
// roots in PEM. Its errors begin with the key in the configuration.
func Parse(fingerprints string, bundle []byte) (Pins, error) {
	switch {
	case fingerprints == "" && len(bundle) == 0:
		return Pins{}, errors.New("fingerprint: set the fingerprint of the CA's root (step certificate fingerprint root_ca.crt), or caBundleFile")
	case fingerprints != "" && len(bundle) > 0:
		return Pins{}, errors.New("fingerprint: caBundleFile is set, too; set one of them")
	case fingerprints != "":
		return parseFingerprints(fingerprints)
	}
	roots, err := pemutil.ParseCertificateBundle(bundle)
	if err != nil {
		return Pins{}, fmt.Errorf("caBundleFile: %w", err)
	}
	return Pins{Roots: roots}, nil
}

func parseFingerprints(list string) (Pins, error) {
	var p Pins
	for text := range strings.SplitSeq(list, ",") {
		digits := strings.ToLower(strings.NewReplacer(":", "", "-", "", " ", "").Replace(text))
		if b, err := hex.DecodeString(digits); err != nil || len(b) != sha256.Size {
			return Pins{}, fmt.Errorf("fingerprint: %q is not a SHA-256 in hexadecimal (64 digits)", strings.TrimSpace(text))
		}
		p.Fingerprints = append(p.Fingerprints, digits)
	}
	return p, nil
}

// ParseURL parses the URL of a CA or a registration authority: https, a host, and
// optionally a port. Its errors begin with the key in the configuration.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("url: %q is not of the form https://<DNS name>[:<port>]", text)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// Among returns the pinned roots: the configured certificates, or those of the offered
// certificates that have one of the fingerprints. It returns none for another peer.
func (p Pins) Among(offered []*x509.Certificate) []*x509.Certificate {
	if p.Fingerprints == nil {
		return p.Roots
	}
	return slices.DeleteFunc(slices.Clone(offered), func(certificate *x509.Certificate) bool {
		return !slices.Contains(p.Fingerprints, Fingerprint(certificate))
	})
}

// Fingerprint is the SHA-256 of a certificate, as step certificate fingerprint
// prints it.
func Fingerprint(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// Fingerprints returns the fingerprint of each certificate.
func Fingerprints(certificates []*x509.Certificate) (all []string) {
	for _, certificate := range certificates {
		all = append(all, Fingerprint(certificate))
	}
	return all
}

// Union returns the certificates of both, without duplicates.
func Union(a, b []*x509.Certificate) []*x509.Certificate {
	all := slices.Clone(a)
	for _, certificate := range b {
		if !slices.ContainsFunc(all, certificate.Equal) {
			all = append(all, certificate)
		}
	}
	return all
}

// Same tells whether both have the same certificates, in any order.
func Same(a, b []*x509.Certificate) bool {
	return len(a) == len(b) && len(Union(a, b)) == len(a)
}

// Pool returns the certificates as crypto/x509 needs them.
func Pool(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool
}
