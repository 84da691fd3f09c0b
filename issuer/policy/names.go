package policy

import (
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"path"
	"strings"

	"golang.org/x/net/idna"

	"github.com/flexstack/step-csi/issuer"
)

const (
	// maxNames is how many names of all types a request may have. Let's
	// Encrypt has the same limit.
	maxNames = 100
	// maxNameLength is what RFC 1035 leaves for a name as text.
	maxNameLength = 253
	// maxURILength is the bound of the SPIFFE ID specification, section 2.3.
	maxURILength = 2048
)

const (
	digits        = "0123456789"
	letters       = "abcdefghijklmnopqrstuvwxyz"
	labelAlphabet = letters + digits + "-"
)

// aLabels validates A-labels and maps nothing. Hyphens in the third and fourth
// place of other labels are left alone: Kubernetes allows them.
var aLabels = idna.New(
	idna.ValidateLabels(true),
	idna.CheckHyphens(false),
	idna.StrictDomainName(true),
	idna.BidiRule(),
	idna.VerifyDNSLength(true),
)

// checkPod refuses an identity that no API server would give, since
// expressions build names out of it.
func checkPod(pod issuer.Pod) error {
	switch {
	case !isLabel(pod.Namespace):
		return fmt.Errorf("the pod's namespace is %q", pod.Namespace)
	case !isObjectName(pod.Name):
		return fmt.Errorf("the pod's name is %q", pod.Name)
	case !isLabel(pod.UID):
		return fmt.Errorf("the pod's UID is %q", pod.UID)
	case !isObjectName(pod.ServiceAccount):
		return fmt.Errorf("the pod's service account is %q", pod.ServiceAccount)
	}
	return nil
}

// checkRequest refuses every name that is not written in its one normal form.
// One that several readers understand differently must not get into a
// certificate, whatever the expressions say.
func checkRequest(req issuer.Request) error {
	if n := len(req.DNSNames) + len(req.IPAddresses) + len(req.URIs) + len(req.EmailAddresses); n > maxNames {
		return fmt.Errorf("%d names are more than the %d that a certificate may have", n, maxNames)
	}
	return errors.Join(
		checkCommonName(req.CommonName),
		each(checkDNSName, req.DNSNames),
		each(checkIPAddress, req.IPAddresses),
		each(checkURI, req.URIs),
		each(checkEmailAddress, req.EmailAddresses),
	)
}

func each[T any](check func(T) error, names []T) error {
	for _, name := range names {
		if err := check(name); err != nil {
			return err
		}
	}
	return nil
}

// checkCommonName is all that can be said about a common name, which need not
// be a host name.
func checkCommonName(name string) error {
	if len(name) > maxNameLength || !isPlain(name) || strings.HasSuffix(name, ".") {
		return fmt.Errorf("common name %q: must be lower-case ASCII without spaces and without a trailing dot", name)
	}
	return nil
}

func checkDNSName(name string) error {
	host := strings.TrimPrefix(name, "*.")
	if len(name) > maxNameLength || !isHostName(host) {
		return fmt.Errorf(`DNS name %q: must be labels of a-z, 0-9 and "-" with single dots between them, and at most the first may be "*"`, name)
	}
	if isNumeric(host) {
		return fmt.Errorf("DNS name %q: could be taken for an IP address", name)
	}
	if ascii, err := aLabels.ToASCII(host); err != nil || ascii != host {
		return fmt.Errorf("DNS name %q: has a label that starts with xn-- but is no internationalized label", name)
	}
	return nil
}

// checkIPAddress refuses an IPv4 address in the clothes of an IPv6 one, which
// crypto/x509 would undress, and a zone, which it would drop.
func checkIPAddress(addr netip.Addr) error {
	if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
		return fmt.Errorf("IP address %q: must be a plain IPv4 or IPv6 address", addr)
	}
	return nil
}

// checkURI demands an absolute URI that reads the same when parsed again, and
// whose path has no other spelling.
func checkURI(u *url.URL) error {
	if u == nil {
		return errors.New("one of the URIs is nil")
	}
	text := u.String()
	parsed, err := url.Parse(text)
	switch {
	case !isPlain(u.Host) || u.User != nil:
		return fmt.Errorf("URI %q: must have its host in lower case, and no user", text)
	case err != nil || *parsed != *u:
		return fmt.Errorf("URI %q: does not parse to what it was made of", text)
	case len(text) > maxURILength || !isPrintable(text) || u.Scheme == "":
		return fmt.Errorf("URI %q: must be absolute, of printable ASCII, and no longer than %d bytes", text, maxURILength)
	case strings.Contains(text, "%") || u.Path != "" && path.Clean(u.Path) != u.Path:
		return fmt.Errorf("URI %q: must have no percent-encoding, no empty segment and no dot segment", text)
	}
	return nil
}

func checkEmailAddress(address string) error {
	parsed, err := mail.ParseAddress(address)
	_, domain, _ := strings.Cut(address, "@")
	if err != nil || parsed.Address != address || !isPlain(address) || !isHostName(domain) {
		return fmt.Errorf("e-mail address %q: must be of the form user@domain, in lower-case ASCII", address)
	}
	return nil
}

// isObjectName tells whether name is one that Kubernetes gives its objects: like
// a host name, but a label may be longer than 63 bytes. See
// https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names.
func isObjectName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || !consistsOf(label, labelAlphabet) || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
	}
	return len(name) <= maxNameLength
}

// isHostName tells whether name is a host name as RFC 1123 has it, written in
// lower case.
func isHostName(name string) bool {
	if len(name) > maxNameLength {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && consistsOf(s, labelAlphabet) &&
		!strings.HasPrefix(s, "-") && !strings.HasSuffix(s, "-")
}

// isTrustDomain follows the SPIFFE ID specification, section 2.1.
func isTrustDomain(s string) bool {
	return s != "" && len(s) <= 255 && consistsOf(s, labelAlphabet+"._")
}

// isNumeric tells whether the resolvers of C libraries may read name as an
// IPv4 address: they take 10.1 for 10.0.0.1, and know octal and hexadecimal.
func isNumeric(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if hex, ok := strings.CutPrefix(label, "0x"); ok && consistsOf(hex, digits+"abcdef") {
			continue
		}
		if !consistsOf(label, digits) {
			return false
		}
	}
	return true
}

// isPlain tells whether s has neither upper case nor spaces.
func isPlain(s string) bool { return isPrintable(s) && s == strings.ToLower(s) }

// isPrintable tells whether s is printable ASCII without spaces.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func consistsOf(s, alphabet string) bool { return strings.Trim(s, alphabet) == "" }
