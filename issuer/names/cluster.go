package names

import (
	"fmt"
	"strings"
)

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
