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

// ParseDNSName converts to lower case and to A-labels, as resolvers do.
func ParseDNSName(text string) (DNSName, error) {
	if _, err := netip.ParseAddr(text); err == nil {
		return DNSName{}, fmt.Errorf("%s is an IP address, not a DNS name", Quote(text))
	}
	if strings.HasSuffix(text, ".") {
		return DNSName{}, fmt.Errorf("%s: leave out the dot at the end", Quote(text))
	}
	rest, wildcard := strings.CutPrefix(text, "*.")
	host, err := parseHostName(rest)
	switch {
	case strings.Contains(rest, "*") || err == nil && wildcard && !strings.Contains(host, "."):
		return DNSName{}, fmt.Errorf("%s: a * must be the whole first label, with at least two labels after it, as in *.example.com", Quote(text))
	case err != nil:
		return DNSName{}, fmt.Errorf("%s %w", Quote(text), err)
	case wildcard && len("*.")+len(host) > maxDNSName:
		return DNSName{}, fmt.Errorf("%s is longer than %d bytes, the limit for a DNS name", Quote(text), maxDNSName)
	case wildcard:
		return DNSName{"*." + host}, nil
	}
	return DNSName{host}, nil
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

// ClusterDomain is the DNS domain of a cluster, such as cluster.local.
type ClusterDomain struct{ domain string }

// String implements fmt.Stringer.
func (d ClusterDomain) String() string { return d.domain }

// ParseClusterDomain rejects domains that end in svc. Under such a domain,
// x.ns.svc could be both the name of a Service and a name directly under the
// cluster domain.
func ParseClusterDomain(text string) (ClusterDomain, error) {
	domain, err := Exactly(ParseDNSName)(text)
	switch {
	case err != nil:
		return ClusterDomain{}, err
	case domain.isWildcard():
		return ClusterDomain{}, fmt.Errorf("%s: leave out the *; a cluster domain is one name such as cluster.local", Quote(text))
	case strings.HasSuffix("."+text, ".svc"):
		return ClusterDomain{}, fmt.Errorf("%s must not end in svc: names in the cluster would be ambiguous", Quote(text))
	}
	return ClusterDomain{text}, nil
}

// Host is the host of a URL: a DNS name without a wildcard, or an IP address.
type Host struct{ host string }

// String implements fmt.Stringer.
func (h Host) String() string { return h.host }

// ParseHost accepts a dot at the end of a DNS name, because URLs may have one.
func ParseHost(text string) (Host, error) {
	if ip, err := ParseIP(text); err == nil {
		return Host{ip.String()}, nil
	}
	dns, err := ParseDNSName(strings.TrimSuffix(text, "."))
	if err != nil || dns.isWildcard() {
		return Host{}, fmt.Errorf("%s is neither a DNS name nor an IP address", Quote(text))
	}
	return Host{dns.String()}, nil
}
