package attributes

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strings"
)

// maxURI is the bound of the SPIFFE ID specification, section 2.3.
const maxURI = 2048

// uriHostPattern allows "_" beyond DNS names, as SPIFFE does in trust domains.
var uriHostPattern = regexp.MustCompile(`^[a-z0-9_-]+(\.[a-z0-9_-]+)*$`)

func (p *parser) setURIs(value string) (err error) {
	p.result.Request.URIs, err = parseList(p, value, parseURI)
	return err
}

// spiffeID is the identity of the pod's service account.
func (p *parser) spiffeID() (*url.URL, error) {
	id, err := parseURI("spiffe://" + p.config.TrustDomain + "/ns/" + p.pod.Namespace + "/sa/" + p.pod.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("spiffe: %w", err)
	}
	return id, nil
}

// parseURI accepts an absolute URI with a host, in the one way to write it: peers
// compare URIs as strings.
func parseURI(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme == "" || u.Hostname() == "":
		return nil, fmt.Errorf("%s is not a URI with scheme and host, such as spiffe://example.com/web", quote(text))
	case len(text) > maxURI:
		return nil, fmt.Errorf("%s is longer than %d bytes", quote(text), maxURI)
	case u.User != nil:
		return nil, fmt.Errorf("%s: a URI in a certificate has no user; leave it out", quote(text))
	case !isPlainASCII(text) || strings.Contains(text+u.String(), "%"):
		return nil, fmt.Errorf("%s: use printable ASCII that needs no percent-encoding", quote(text))
	}
	if err := checkURIHost(u); err != nil {
		return nil, err
	}
	u.Host = normalURIHost(u)
	if clean := path.Clean(u.Path); u.Path != "" && u.Path != clean {
		u.Path = clean
		return nil, fmt.Errorf("%s: the path has a slash too many, or a dot segment; write it as %s", quote(text), quote(u.String()))
	}
	if u.String() != text {
		return nil, fmt.Errorf("%s: write it as %s", quote(text), quote(u.String()))
	}
	return u, nil
}

// checkURIHost lets crypto/x509 read the certificate: it refuses URIs whose
// host is neither a DNS name nor an IP address. A SPIFFE trust domain is not
// resolved, so it may end in a number.
func checkURIHost(u *url.URL) error {
	host := strings.ToLower(u.Hostname())
	_, err := netip.ParseAddr(host)
	likeIPv4 := u.Scheme != "spiffe" && numberPattern.MatchString(host)
	if err == nil || uriHostPattern.MatchString(host) && !likeIPv4 {
		return nil
	}
	return fmt.Errorf("%s: the host must be a DNS name in ASCII without a dot at the end, or an IP address", quote(u.String()))
}

// normalURIHost has no zeros before the port, nor a colon without one, and
// writes addresses as RFC 5952 does.
func normalURIHost(u *url.URL) string {
	host := strings.ToLower(u.Hostname())
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := strings.TrimLeft(u.Port(), "0"); port != "" {
		host += ":" + port
	}
	return host
}

// isPlainASCII tells whether text is printable ASCII without blanks.
func isPlainASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}
