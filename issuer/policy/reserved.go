package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// reservation is a form of the name of a host that no pod may have.
type reservation struct{ form, host string }

// reserve returns the host in every form that clients in the cluster can use. A host
// with two labels may be a Service with its namespace.
func reserve(host names.Host, domain names.ClusterDomain) []reservation {
	text := host.String()
	suffix := ".svc." + domain.String()
	service, inCluster := strings.CutSuffix(text, suffix)
	if !inCluster {
		service, inCluster = strings.CutSuffix(text, ".svc")
	}
	if !inCluster && strings.Count(text, ".") != 1 {
		return []reservation{{text, text}}
	}
	// Clients in the same namespace can leave out the namespace.
	short := service[:max(strings.LastIndexByte(service, '.'), 0)]
	return []reservation{{text, text}, {service, text}, {service + ".svc", text}, {service + suffix, text}, {short, text}}
}

// checkReserved denies the names of reserved hosts, and wildcards that cover them.
func (p *Policy) checkReserved(req issuer.Request) error {
	all := append(req.AlternativeNames(), asHost(req.CommonName))
	for _, r := range p.reserved {
		_, parent, _ := strings.Cut(r.form, ".")
		for _, name := range all {
			if name != "" && (name == r.form || name == "*."+parent) {
				return fmt.Errorf("the name %s is reserved: with it, the pod could impersonate %s", name, r.host)
			}
		}
	}
	return nil
}

// asHost returns a common name as a client reads it that compares it with a host,
// in the spelling of the other names.
func asHost(commonName names.CommonName) string {
	text := commonName.String()
	if ip, err := netip.ParseAddr(text); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	if dns, err := names.ParseDNSName(strings.TrimSuffix(text, ".")); err == nil {
		return dns.String()
	}
	return strings.ToLower(text)
}
