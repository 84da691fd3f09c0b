package names

import (
	"fmt"
	"strings"
)

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
