package names

import (
	"fmt"
	"strings"
)

// Host is the host of a URL: a DNS name without a wildcard, or an IP address.
type Host struct{ name }

// ParseHost accepts a dot at the end of a DNS name, because URLs may have one.
func ParseHost(text string) (Host, error) {
	if ip, err := ParseIP(text); err == nil {
		return Host{name{ip.String()}}, nil
	}
	dns, err := ParseDNSName(strings.TrimSuffix(text, "."))
	if err != nil || dns.IsWildcard() {
		return Host{}, fmt.Errorf("%s is neither a DNS name nor an IP address", Quote(text))
	}
	return Host(dns), nil
}
