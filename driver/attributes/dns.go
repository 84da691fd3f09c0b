package attributes

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxDNSName is what RFC 1035 leaves for a name as text.
const maxDNSName = 253

// dnsProfile maps to lower case and to A-labels (RFC 5891), as a resolver does,
// and checks labels and lengths.
var dnsProfile = idna.New(
	idna.MapForLookup(),
	idna.StrictDomainName(true),
	idna.ValidateLabels(true),
	idna.CheckHyphens(false), // Kubernetes has names such as my--app
	idna.BidiRule(),
	idna.VerifyDNSLength(true),
)

const label = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`

var (
	labelPattern = regexp.MustCompile(`^` + label + `$`)
	// hostPattern is stricter than dnsProfile about hyphens at the ends of
	// labels, and about a dot at the end in one of its Unicode forms.
	hostPattern = regexp.MustCompile(`^` + label + `(\.` + label + `)*$`)
	// numberPattern is what clients take for the last part of an IPv4 address.
	// See https://url.spec.whatwg.org/#ends-in-a-number-checker
	numberPattern = regexp.MustCompile(`(^|\.)([0-9]+|0x[0-9a-f]*)$`)
)

var errWildcard = errors.New("a * stands for the whole first label, with at least two labels after it, as in *.example.com")

// parseDNSName normalizes a DNS name, which may begin with the label *.
func parseDNSName(name string) (string, error) {
	if _, err := netip.ParseAddr(name); err == nil {
		return "", fmt.Errorf("%s is an IP address; put it into ip-sans", quote(name))
	}
	if strings.HasSuffix(name, ".") {
		return "", fmt.Errorf("%s: leave out the dot at the end", quote(name))
	}
	rest, wildcard := strings.CutPrefix(name, "*.")
	if strings.Contains(rest, "*") {
		return "", fmt.Errorf("%s: %w", quote(name), errWildcard)
	}
	host, err := parseHost(rest)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s %w", quote(name), err)
	case !wildcard:
		return host, nil
	case !strings.Contains(host, "."):
		return "", fmt.Errorf("%s: %w", quote(name), errWildcard)
	case len("*.")+len(host) > maxDNSName:
		return "", fmt.Errorf("%s is longer than the %d bytes of a DNS name", quote(name), maxDNSName)
	}
	return "*." + host, nil
}

// parseHost normalizes a DNS name without a wildcard.
func parseHost(name string) (string, error) {
	host, err := dnsProfile.ToASCII(name)
	switch {
	// The profile drops bytes that are not UTF-8.
	case err != nil || !utf8.ValidString(name) || !hostPattern.MatchString(host):
		return "", fmt.Errorf(`is not a DNS name: labels of letters, digits and inner "-", 63 bytes at most, with single dots between them, and %d bytes in all`, maxDNSName)
	case numberPattern.MatchString(host):
		return "", errors.New("ends in a number, so clients take it for an IPv4 address; put a longer name into dns-names")
	}
	return host, nil
}

func (p *parser) setDNSNames(value string) (err error) {
	p.dns, err = parseList(p, value, parseDNSName)
	return err
}

func (p *parser) setServiceNames(value string) (err error) {
	p.services, err = parseList(p, value, func(name string) (string, error) {
		service, err := parseDNSName(name)
		if err == nil && !labelPattern.MatchString(service) {
			err = fmt.Errorf("%s is not the name of a Service, without its namespace; whole names go into dns-names", quote(name))
		}
		return service, err
	})
	return err
}

// serviceNames are the names that the cluster's DNS gives a Service.
func (p *parser) serviceNames() ([]string, error) {
	var all []string
	for _, service := range p.services {
		inNamespace := service + "." + p.pod.Namespace
		for _, name := range []string{inNamespace, inNamespace + ".svc", inNamespace + ".svc." + p.config.ClusterDomain} {
			parsed, err := parseDNSName(name)
			if err != nil {
				return nil, fmt.Errorf("service-names: %w", err)
			}
			all = append(all, parsed)
		}
		if p.config.AllowShortNames {
			all = append(all, service)
		}
	}
	return all, nil
}
