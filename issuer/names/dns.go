package names

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxDNSName is the limit of RFC 1035 for a name as text, in bytes.
const maxDNSName = 253

// DNSName is a host name in lower-case A-labels (RFC 5890) without a dot at the
// end. Its first label may be the wildcard *.
type DNSName struct{ dns string }

// String implements fmt.Stringer.
func (n DNSName) String() string { return n.dns }

func (n DNSName) isWildcard() bool { return strings.HasPrefix(n.dns, "*.") }

var errWildcard = errors.New("a * must be the whole first label, with at least two labels after it, as in *.example.com")

// ParseDNSName converts to lower case and to A-labels, as resolvers do.
func ParseDNSName(text string) (DNSName, error) {
	if _, err := netip.ParseAddr(text); err == nil {
		return DNSName{}, fmt.Errorf("%s is an IP address, not a DNS name", Quote(text))
	}
	if strings.HasSuffix(text, ".") {
		return DNSName{}, fmt.Errorf("%s: leave out the dot at the end", Quote(text))
	}
	rest, wildcard := strings.CutPrefix(text, "*.")
	if strings.Contains(rest, "*") {
		return DNSName{}, fmt.Errorf("%s: %w", Quote(text), errWildcard)
	}
	host, err := parseHostName(rest)
	switch {
	case err != nil:
		return DNSName{}, fmt.Errorf("%s %w", Quote(text), err)
	case !wildcard:
		return DNSName{host}, nil
	case !strings.Contains(host, "."):
		return DNSName{}, fmt.Errorf("%s: %w", Quote(text), errWildcard)
	case len("*.")+len(host) > maxDNSName:
		return DNSName{}, fmt.Errorf("%s is longer than %d bytes, the limit for a DNS name", Quote(text), maxDNSName)
	}
	return DNSName{"*." + host}, nil
}

// dnsProfile maps to lower case and to A-labels (RFC 5891), and checks labels and
// lengths.
var dnsProfile = idna.New(
	idna.MapForLookup(),
	idna.StrictDomainName(true),
	idna.ValidateLabels(true),
	idna.CheckHyphens(false), // Kubernetes allows names such as my--app.
	idna.BidiRule(),
	idna.VerifyDNSLength(true),
)

const label = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`

var (
	// hostPattern is stricter than dnsProfile about hyphens at the ends of labels,
	// and about the Unicode forms of a dot at the end.
	hostPattern = regexp.MustCompile(`^` + label + `(\.` + label + `)*$`)
	// numberPattern matches names that URL parsers and C libraries take for an IPv4
	// address. See https://url.spec.whatwg.org/#ends-in-a-number-checker.
	numberPattern = regexp.MustCompile(`(^|\.)([0-9]+|0x[0-9a-f]*)$`)
)

// parseHostName parses a DNS name without a wildcard.
func parseHostName(text string) (string, error) {
	host, err := dnsProfile.ToASCII(text)
	if err == nil {
		// The profile does not check all that it has mapped: aℷ becomes aג, which
		// violates the Bidi rule.
		host, err = dnsProfile.ToASCII(host)
	}
	switch {
	// The profile drops bytes that are not UTF-8.
	case err != nil || !utf8.ValidString(text) || !hostPattern.MatchString(host):
		return "", fmt.Errorf(`is not a DNS name: use labels of letters, digits and inner "-" with at most 63 bytes, single dots between them, and at most %d bytes in total`, maxDNSName)
	case numberPattern.MatchString(host):
		return "", errors.New("ends in a number, so clients take it for an IPv4 address; use a DNS name whose last label is not a number")
	}
	return host, nil
}
