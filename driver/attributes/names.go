package attributes

import (
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"go.step.sm/crypto/x509util"
	"golang.org/x/net/idna"

	"github.com/flexstack/step-csi/issuer"
)

// maxCommonName is ub-common-name of RFC 5280, in bytes.
const maxCommonName = 64

// dnsProfile maps to lower case and to A-labels (RFC 5891), and checks labels
// and lengths.
var dnsProfile = idna.New(
	idna.MapForLookup(),
	idna.StrictDomainName(true),
	idna.ValidateLabels(true),
	idna.CheckHyphens(false), // Kubernetes has names such as a--b
	idna.BidiRule(),
	idna.VerifyDNSLength(true),
)

// parseDNSName normalizes a DNS name, which may begin with the label *.
func parseDNSName(name string) (string, error) {
	host, wildcard := strings.CutPrefix(name, "*.")
	switch {
	case strings.HasSuffix(name, "."):
		return "", fmt.Errorf("%s: leave out the dot at the end", quote(name))
	case strings.Contains(host, "*"):
		return "", fmt.Errorf("%s: a * stands for the whole first label, as in *.example.com, or nowhere", quote(name))
	}
	ascii, err := dnsProfile.ToASCII(host)
	if err != nil {
		return "", fmt.Errorf("%s is not a DNS name: %w", quote(name), err)
	}
	labels := strings.Split(ascii, ".")
	switch _, ipErr := netip.ParseAddr(ascii); {
	case ipErr == nil:
		return "", fmt.Errorf("%s is an IP address; put it into ip-sans", quote(name))
	case strings.Trim(labels[len(labels)-1], "0123456789") == "":
		return "", fmt.Errorf("%s: the last label of a DNS name is not a number", quote(name))
	case wildcard && len(labels) < 2:
		return "", fmt.Errorf("%s: at least two labels must follow the *", quote(name))
	case wildcard:
		ascii = "*." + ascii
	}
	if len(ascii) > 253 {
		return "", fmt.Errorf("%s is longer than the 253 bytes of a DNS name", quote(name))
	}
	return ascii, nil
}

func (p *parser) setDNSNames(value string) (err error) {
	p.dns, err = parseList(p, value, parseDNSName)
	return err
}

func (p *parser) setServiceNames(value string) (err error) {
	p.services, err = parseList(p, value, func(name string) (string, error) {
		service, err := parseDNSName(name)
		if err == nil && strings.ContainsAny(service, ".*") {
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

func (p *parser) setIPAddresses(value string) (err error) {
	p.result.Request.IPAddresses, err = parseList(p, value, func(text string) (netip.Addr, error) {
		ip, err := netip.ParseAddr(text)
		switch {
		case err != nil || ip.Zone() != "":
			return ip, fmt.Errorf("%s is not an IP address", quote(text))
		case ip.Is4In6():
			return ip, fmt.Errorf("%s: write it as %s", quote(text), ip.Unmap())
		case ip.IsUnspecified() || ip.IsMulticast():
			return ip, fmt.Errorf("%s is not the address of one host", quote(text))
		}
		return ip, nil
	})
	return err
}

func (p *parser) setURIs(value string) (err error) {
	p.result.Request.URIs, err = parseList(p, value, parseURI)
	return err
}

func sameURI(a, b *url.URL) bool { return a.String() == b.String() }

// parseURI accepts an absolute URI with a host, in the one way to write it.
func parseURI(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme == "" || u.Hostname() == "" || u.Opaque != "":
		return nil, fmt.Errorf("%s is not a URI with scheme and host, such as spiffe://example.com/web", quote(text))
	case u.User != nil:
		return nil, fmt.Errorf("%s: a URI in a certificate has no user", quote(text))
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, fmt.Errorf("%s: a URI is printable ASCII; escape other characters with %%", quote(text))
	case u.String() != text:
		return nil, fmt.Errorf("%s: write it as %s", quote(text), quote(u.String()))
	case len(text) > 2048:
		return nil, fmt.Errorf("%s is longer than 2048 bytes", quote(text))
	}
	return u, checkURIHost(u)
}

// checkURIHost lets crypto/x509 read the certificate: it refuses URIs whose
// host is neither a DNS name nor an IP address.
func checkURIHost(u *url.URL) error {
	host := u.Hostname()
	if net.ParseIP(host) != nil {
		return nil
	}
	if ascii, err := parseDNSName(host); err != nil || ascii != host {
		return fmt.Errorf("%s: the host must be a DNS name in lower case and ASCII, or an IP address", quote(u.String()))
	}
	return nil
}

func (p *parser) setEmailAddresses(value string) (err error) {
	p.result.Request.EmailAddresses, err = parseList(p, value, func(text string) (string, error) {
		address, err := mail.ParseAddress(text)
		if err != nil || address.Address != text || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return "", fmt.Errorf("%s is not an e-mail address, such as admin@example.com", quote(text))
		}
		_, host, _ := strings.Cut(text, "@")
		if ascii, err := parseDNSName(host); err != nil || ascii != host {
			return "", fmt.Errorf("%s: what follows the @ must be a DNS name in lower case and ASCII", quote(text))
		}
		return text, nil
	})
	return err
}

// setCommonName leaves it to the policy what the name may be.
func (p *parser) setCommonName(value string) error {
	name, err := p.expand(value)
	switch {
	case err != nil:
		return err
	case name == "" || len(name) > maxCommonName:
		return fmt.Errorf("%s does not have 1 to %d bytes (RFC 5280)", quote(name), maxCommonName)
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%s has characters that do not print", quote(name))
	}
	p.commonName = name
	return nil
}

// finishNames puts the names together.
func (p *parser) finishNames() error {
	r := &p.result.Request
	services, err := p.serviceNames()
	if err != nil {
		return err
	}
	r.DNSNames = unique(append(p.dns, services...))
	if p.spiffe {
		id := &url.URL{Scheme: "spiffe", Host: p.config.TrustDomain, Path: "/ns/" + p.pod.Namespace + "/sa/" + p.pod.ServiceAccount}
		others := slices.DeleteFunc(r.URIs, func(u *url.URL) bool { return sameURI(u, id) })
		r.URIs = append([]*url.URL{id}, others...)
	}
	r.CommonName = p.defaultCommonName()
	all := names(*r)
	switch {
	case len(all) == 0:
		return errors.New("the certificate would have no name: give service-names or dns-names, or leave out spiffe")
	case len(all) > maxNames:
		return fmt.Errorf("%d names are too many for one certificate; at most %d are possible", len(all), maxNames)
	}
	return checkUnambiguous(*r, all)
}

// defaultCommonName is the first DNS name that is short enough. Without one it
// is the pod's name, if that looks like one which a controller has made: a pod
// may also be named postgres, or admin.example.com, and servers which map the
// common name to a user or a host must not take it for that one.
func (p *parser) defaultCommonName() string {
	if p.commonName != "" {
		return p.commonName
	}
	for _, name := range p.result.Request.DNSNames {
		if len(name) <= maxCommonName {
			return name
		}
	}
	if len(p.pod.Name) <= maxCommonName && strings.Contains(p.pod.Name, "-") && !strings.Contains(p.pod.Name, ".") {
		return p.pod.Name
	}
	return p.pod.UID
}

// checkUnambiguous makes sure that step-ca, which gets all names as strings in
// the one-time token, takes each for what it is here.
func checkUnambiguous(r issuer.Request, all []string) error {
	dns, ips, emails, uris := x509util.SplitSANs(all)
	if !slices.Equal(dns, r.DNSNames) || !slices.Equal(emails, r.EmailAddresses) ||
		!slices.Equal(texts(ips, net.IP.String), texts(r.IPAddresses, netip.Addr.String)) ||
		!slices.Equal(texts(uris, (*url.URL).String), texts(r.URIs, (*url.URL).String)) {
		return fmt.Errorf("step-ca would take one of the names %q for one of another type", all)
	}
	return nil
}

// parseList splits, expands and parses a value, and drops what comes twice.
func parseList[T any](p *parser, value string, parse func(string) (T, error)) ([]T, error) {
	parts, err := p.list(value)
	if err != nil {
		return nil, err
	}
	var all []T
	seen := map[string]bool{}
	for _, part := range parts {
		v, err := parse(part)
		if err != nil {
			return nil, err
		}
		if text := fmt.Sprint(v); !seen[text] {
			seen[text] = true
			all = append(all, v)
		}
	}
	return all, nil
}

func unique(all []string) []string {
	var result []string
	for _, name := range all {
		if !slices.Contains(result, name) {
			result = append(result, name)
		}
	}
	return result
}
