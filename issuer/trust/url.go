package trust

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

const httpsPort = "443"

// ParseURL parses the URL of a CA or a registration authority: https, a host, and
// optionally a port. URLs that mean the same come out the same, because the host becomes
// the server's name in TLS, and step-ca compares it, byte by byte, with the audience of
// one-time tokens. So the host is in lower case, without a dot at the end, and in A-labels
// (RFC 5890) or in the form of RFC 5952; there is no port 443, and no path.
func ParseURL(text string) (*url.URL, error) {
	u, err := parseURL(strings.TrimSpace(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; write https://<host>[:<port>], such as https://ca.example.com:9000 or https://[fd00::1]:9000", quoteURL(text), err)
	}
	return u, nil
}

// quoteURL leaves out what may be a password.
func quoteURL(text string) string {
	if before, after, found := strings.Cut(text, "@"); found {
		scheme, _, _ := strings.Cut(before, "://")
		text = scheme + "://…@" + after
	}
	return names.Quote(text)
}

func parseURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, errors.New("the URL is missing")
	}
	// url.Parse takes ca:9000 for a scheme and its data.
	if !strings.Contains(text, "://") {
		return nil, errors.New("https:// is missing")
	}
	u, err := url.Parse(text)
	var reason *url.Error
	if errors.As(err, &reason) {
		err = reason.Err // without the URL
	}
	switch {
	case err != nil && strings.Count(text, ":") > 2 && !strings.Contains(text, "["):
		return nil, fmt.Errorf("%w; an IPv6 address needs brackets", err)
	case err != nil:
		return nil, err
	case u.Scheme != "https":
		return nil, fmt.Errorf("%s is not possible, only https", u.Scheme)
	case u.User != nil:
		return nil, errors.New("leave out the user name and the password")
	case strings.Trim(u.Path, "/") != "":
		return nil, fmt.Errorf("leave out the path %s, because the paths of the API are fixed", names.Quote(u.Path))
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("leave out the query and the fragment")
	}
	host, err := parseHost(u.Hostname())
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), httpsPort), 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("the port %s is not between 1 and 65535", u.Port())
	}
	address := net.JoinHostPort(host, strconv.FormatUint(port, 10))
	return &url.URL{Scheme: u.Scheme, Host: strings.TrimSuffix(address, ":"+httpsPort)}, nil
}

func parseHost(text string) (string, error) {
	if text == "" {
		return "", errors.New("the host is missing")
	}
	ip, err := netip.ParseAddr(text)
	if err == nil && ip.Zone() != "" {
		return "", fmt.Errorf("no certificate can contain the zone %s of the address; use a DNS name or another address of the server", names.Quote(ip.Zone()))
	}
	if err == nil {
		address, err := names.ParseIP(text)
		return address.String(), err
	}
	host, err := names.ParseHost(text)
	return host.String(), err
}

// HostPort returns the host and port of a parsed URL, as net.Dial needs them.
func HostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = httpsPort
	}
	return net.JoinHostPort(u.Hostname(), port)
}
