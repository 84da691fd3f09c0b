package names

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxURI is the limit of the SPIFFE ID specification, section 2.3, in bytes.
const MaxURI = 2048

// URI is an absolute URI with a host. With the scheme spiffe, it is a SPIFFE ID.
type URI struct{ uri string }

// String implements fmt.Stringer.
func (u URI) String() string { return u.uri }

// URL returns the URI in parts.
func (u URI) URL() *url.URL {
	parsed, _ := url.Parse(u.uri) // ParseURI has parsed it.
	return parsed
}

// SPIFFEID returns the URI as a SPIFFE ID. ok is false if the URI has another
// scheme.
func (u URI) SPIFFEID() (id spiffeid.ID, ok bool) {
	id, err := spiffeid.FromString(u.uri)
	return id, err == nil
}

// ParseURI rejects every spelling but one, because peers compare URIs as strings.
func ParseURI(text string) (URI, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme == "" || u.Hostname() == "":
		return URI{}, fmt.Errorf("%s is not a URI with scheme and host, such as spiffe://example.com/web", Quote(text))
	case len(text) > MaxURI:
		return URI{}, fmt.Errorf("%s is longer than %d bytes", Quote(text), MaxURI)
	case u.User != nil:
		return URI{}, fmt.Errorf("%s: leave out the user; a URI in a certificate has none", Quote(text))
	case !isPlainASCII(text) || strings.Contains(text+u.String(), "%"):
		return URI{}, fmt.Errorf("%s: use printable ASCII that needs no percent-encoding", Quote(text))
	}
	host, ok := normalURIHost(u)
	if !ok {
		return URI{}, fmt.Errorf("%s: the host must be a DNS name in ASCII without a dot at the end, or an IP address", Quote(text))
	}
	u.Host = host
	if clean := path.Clean(u.Path); u.Path != "" && u.Path != clean {
		u.Path = clean
		return URI{}, fmt.Errorf("%s: the path has an empty segment or a dot segment; write it as %s", Quote(text), Quote(u.String()))
	}
	if u.String() != text {
		return URI{}, fmt.Errorf("%s: write it as %s", Quote(text), Quote(u.String()))
	}
	if u.Scheme == "spiffe" {
		id, err := spiffeid.FromString(text)
		if err == nil {
			_, err = ParseTrustDomain(id.TrustDomain().Name())
		}
		if err != nil {
			return URI{}, fmt.Errorf("%s is not a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/web: %w", Quote(text), err)
		}
	}
	return URI{text}, nil
}

// uriHostPattern allows "_" too, which SPIFFE allows in trust domains.
var uriHostPattern = regexp.MustCompile(`^[a-z0-9_-]+(\.[a-z0-9_-]+)*$`)

// normalURIHost returns host and port in their one spelling: an address as in
// RFC 5952, a port without leading zeros, and no colon without a port. ok is false
// if the host is neither a DNS name nor an IP address: crypto/x509 cannot read a
// certificate with such a URI. A SPIFFE trust domain is not resolved, so it may end
// in a number.
func normalURIHost(u *url.URL) (host string, ok bool) {
	host = strings.ToLower(u.Hostname())
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	} else if !uriHostPattern.MatchString(host) || u.Scheme != "spiffe" && numberPattern.MatchString(host) {
		return "", false
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := strings.TrimLeft(u.Port(), "0"); port != "" {
		host += ":" + port
	}
	return host, true
}

// maxTrustDomain is the limit of the SPIFFE ID specification, section 2.3, in
// bytes.
const maxTrustDomain = 255

// ParseTrustDomain parses the name of a SPIFFE trust domain, without the scheme.
func ParseTrustDomain(text string) (spiffeid.TrustDomain, error) {
	domain, err := spiffeid.TrustDomainFromString(text)
	// go-spiffe also accepts a whole SPIFFE ID, and has no limit.
	if err != nil || domain.Name() != text || len(text) > maxTrustDomain {
		return spiffeid.TrustDomain{}, fmt.Errorf(
			`%s is not a trust domain: use lower-case letters, digits, ".", "-" and "_", and at most %d bytes, such as cluster.local`, Quote(text), maxTrustDomain)
	}
	return domain, nil
}

// PodSPIFFEID returns the SPIFFE ID of a service account.
func PodSPIFFEID(domain spiffeid.TrustDomain, namespace, serviceAccount string) (URI, error) {
	id, err := spiffeid.FromSegments(domain, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return URI{}, fmt.Errorf("the SPIFFE ID of service account %s in namespace %s: %w", Quote(serviceAccount), Quote(namespace), err)
	}
	return ParseURI(id.String())
}
