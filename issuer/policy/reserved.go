package policy

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// apiServer is the API server's name in every cluster.
const apiServer = "kubernetes.default.svc"

// localhost is reserved with all names below it (RFC 6761, section 6.3).
const localhost = "localhost"

// localNames are other names of the local machine: those that the kubelet writes into the
// /etc/hosts of pods, and those of Linux distributions.
var localNames = []string{
	localhost, "localhost.localdomain", "ip6-localhost", "ip6-loopback",
	"localhost4", "localhost4.localdomain4", "localhost6", "localhost6.localdomain6",
}

// maxLearned bounds the forms of the names that Learn adds. One CA has a handful.
const maxLearned = 2000

// Reserved is the set of hosts that no pod may have in its certificate, whatever the
// expressions of a policy say: it could impersonate them. These are the CAs, the
// registration authority, the API server, localhost with the loopback addresses, and
// link-local and multicast addresses.
// Policies share a Reserved. It is safe for concurrent use.
type Reserved struct {
	domain names.ClusterDomain
	fixed  forms

	mu      sync.RWMutex
	learned forms
}

// NewReserved returns a set with the hosts of the configuration, and with those that are
// the same in every cluster.
func NewReserved(domain names.ClusterDomain, hosts ...names.Host) *Reserved {
	r := &Reserved{domain: domain, fixed: forms{}, learned: forms{}}
	for _, text := range slices.Concat(names.Texts(hosts), localNames, []string{apiServer}) {
		r.fixed.add(text, domain)
	}
	return r
}

// HostsOf returns the hosts of the URLs of CAs and others. It leaves out a text that is not a
// URL with a host, which the code that uses the URL rejects.
func HostsOf(urls ...string) (hosts []names.Host) {
	for _, text := range urls {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			continue
		}
		if host, err := names.ParseHost(u.Hostname()); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// Learn adds the names of a certificate that a CA or a registration authority has shown
// over a verified connection: at most names.MaxNames of each certificate. If there are too
// many in all, Learn forgets those of earlier certificates.
func (r *Reserved) Learn(leaf *x509.Certificate) {
	texts := append([]string{leaf.Subject.CommonName}, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		texts = append(texts, ip.String())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.learned.size() > maxLearned {
		r.learned = forms{}
	}
	for _, text := range texts[:min(len(texts), names.MaxNames+1)] {
		// The subject of step-ca's own certificate is not a host name.
		if host := asHost(text); isHost(host) {
			r.learned.add(host, r.domain)
		}
	}
}

// check denies the names of reserved hosts, and wildcards that cover them.
func (r *Reserved) check(req issuer.Request) error {
	all := append(names.Texts(req.DNSNames), names.Texts(req.IPAddresses)...)
	if commonName := req.CommonName.String(); commonName != "" {
		all = append(all, asHost(commonName))
	}
	for _, uri := range req.URIs {
		// Some clients compare the host of such a URI: RFC 9525, section 6.5.
		if _, spiffe := uri.SPIFFEID(); !spiffe {
			all = append(all, uri.URL().Hostname())
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, name := range all {
		host, reserved := r.fixed.match(name)
		if !reserved {
			host, reserved = r.learned.match(name)
		}
		if local := ownerOfLocal(name); local != "" {
			host, reserved = local, true
		}
		if reserved {
			return fmt.Errorf("the name %s is reserved: with it, the pod could impersonate %s", name, host)
		}
	}
	return nil
}

// ownerOfLocal says who has an address or a name that means another host on each machine
// or network. It is empty for other names.
func ownerOfLocal(name string) string {
	if strings.HasSuffix(name, "."+localhost) {
		return localhost
	}
	ip, err := netip.ParseAddr(name)
	switch ip = ip.Unmap(); {
	case err != nil:
		return ""
	case ip.IsLoopback() || ip.IsUnspecified():
		return localhost
	case ip.IsLinkLocalUnicast():
		return "hosts of the client's network, such as the metadata service of a cloud"
	case ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "all hosts of the client's network"
	}
	return ""
}

// forms are names of hosts: parent domain → first label → the host as configured.
type forms map[string]map[string]string

// add adds the host in every form that clients in the cluster can use. A host with two
// labels may be a Service with its namespace.
func (f forms) add(host string, domain names.ClusterDomain) {
	suffix := ".svc." + domain.String()
	service, inCluster := strings.CutSuffix(host, suffix)
	if !inCluster {
		service, inCluster = strings.CutSuffix(host, ".svc")
	}
	all := []string{host}
	if inCluster || strings.Count(host, ".") == 1 {
		// Clients in the same namespace can leave out the namespace.
		short := service[:max(strings.LastIndexByte(service, '.'), 0)]
		all = append(all, service, service+".svc", service+suffix, short)
	}
	for _, form := range all {
		label, parent, _ := strings.Cut(form, ".")
		if label == "" {
			continue
		}
		if f[parent] == nil {
			f[parent] = map[string]string{}
		}
		if f[parent][label] == "" {
			f[parent][label] = host
		}
	}
}

func (f forms) size() (n int) {
	for _, labels := range f {
		n += len(labels)
	}
	return n
}

// match returns the host that has the name, or that the name covers as a wildcard. The *
// of a common name may be a part of the label: OpenSSL accepts this.
func (f forms) match(name string) (host string, reserved bool) {
	label, parent, _ := strings.Cut(name, ".")
	before, after, wildcard := strings.Cut(label, "*")
	if !wildcard || parent == "" { // no client takes a single label for a wildcard
		host, reserved = f[parent][label]
		return host, reserved
	}
	// The first in the alphabet: the same request always gets the same message, which the
	// kubelet counts in one event.
	for label, covered := range f[parent] {
		if len(label) >= len(before)+len(after) && strings.HasPrefix(label, before) && strings.HasSuffix(label, after) && (!reserved || covered < host) {
			host, reserved = covered, true
		}
	}
	return host, reserved
}

// isHost tells whether a text in the spelling of asHost is a DNS name, which may be a
// wildcard, or an IP address.
func isHost(text string) bool {
	_, dnsErr := names.ParseDNSName(text)
	_, ipErr := names.ParseIP(text)
	return dnsErr == nil || ipErr == nil
}

// asHost returns a common name as a client reads it that compares it with a host, in the
// spelling of the other names.
func asHost(commonName string) string {
	text := strings.NewReplacer("。", ".", "．", ".", "｡", ".").Replace(commonName) // the dots of RFC 3490
	text = strings.ToLower(strings.TrimRight(text, "."))
	address := strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	if ip, err := netip.ParseAddr(address); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	if ip, ok := parseNumbers(text); ok {
		return ip.String()
	}
	if dns, err := names.ParseDNSName(text); err == nil {
		return dns.String()
	}
	return text
}

// parseNumbers parses an IPv4 address as inet_aton(3) does: of one to four numbers, each
// decimal, octal or hexadecimal. The last one fills the remaining bytes.
func parseNumbers(text string) (netip.Addr, bool) {
	parts := strings.Split(text, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var address uint64
	for i, part := range parts {
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (4 - i)
		}
		number, err := strconv.ParseUint(part, 0, bits)
		// ParseUint also accepts the 0b, the 0o and the _ of Go's syntax.
		if err != nil || strings.ContainsAny(part, "_o") || strings.HasPrefix(part, "0b") {
			return netip.Addr{}, false
		}
		address = address<<bits | number
	}
	return netip.AddrFrom4([4]byte{byte(address >> 24), byte(address >> 16), byte(address >> 8), byte(address)}), true
}
