package names

import (
	"slices"
	"strings"
)

// Domains returns domains of one label that belong to others than a namespace of the
// same name: <x>.<domain> may be a host on the internet, in a private network, or on
// the local machine.
func Domains() []string {
	return []string{
		// Top-level domains that hardly anyone calls a namespace in good faith.
		"com", "net", "org", "edu", "gov", "mil", "int", "io",
		// Kubernetes: <namespace>.svc.
		"svc",
		// Special-use domains: https://www.iana.org/assignments/special-use-domain-names.
		"alt", "arpa", "example", "invalid", "local", "localhost", "onion", "test",
		// Private networks: RFC 6762, appendix G, and the domain that ICANN reserves for
		// them (https://www.icann.org/en/board-activities-and-meetings/materials/approved-resolutions-special-meeting-of-the-icann-board-29-07-2024-en).
		"corp", "home", "internal", "intranet", "lan", "private",
		// Names that ICANN never delegates because networks use them, and those that
		// resolvers and routers add by default.
		"mail", "domain", "host", "localdomain",
	}
}

// IsDomain tells whether the namespace is named like one of Domains, or like the last
// label of the cluster domain. Names of the form <x>.<namespace> are then ambiguous.
func IsDomain(namespace string, cluster ClusterDomain) bool {
	return slices.Contains(Domains(), namespace) || strings.HasSuffix("."+cluster.String(), "."+namespace)
}
