package policy

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/idna"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

func TestDefaultCompiles(t *testing.T) {
	newPolicy(t, testConfig(Default()...))
}

// change modifies the test's valid pod and request.
type change func(*issuer.Pod, *texts)

func dns(names ...string) change {
	return func(_ *issuer.Pod, r *texts) { r.CommonName, r.DNSNames, r.URIs = "", names, nil }
}

func dnsIn(namespace string, names ...string) change {
	return func(p *issuer.Pod, r *texts) {
		p.Namespace = namespace
		dns(names...)(p, r)
	}
}

func ips(addrs ...string) change {
	return func(_ *issuer.Pod, r *texts) {
		r.IPAddresses = append(r.IPAddresses, addrs...)
	}
}

func email(addresses ...string) change {
	return func(_ *issuer.Pod, r *texts) { r.EmailAddresses = addresses }
}

func uri(text string) change {
	return func(_ *issuer.Pod, r *texts) { r.URIs = []string{text} }
}

func commonName(name string) change {
	return func(_ *issuer.Pod, r *texts) { r.CommonName = name }
}

// podAsCommonName requests the pod's name as the common name, beside DNS names.
func podAsCommonName(name string) change {
	return func(p *issuer.Pod, r *texts) { p.Name, r.CommonName = name, name }
}

// aloneAsCommonName requests the pod's name as the common name, without a DNS name.
func aloneAsCommonName(name string) change {
	return func(p *issuer.Pod, r *texts) { p.Name, r.CommonName, r.DNSNames = name, name, nil }
}

func pod(set func(*issuer.Pod)) change {
	return func(p *issuer.Pod, _ *texts) { set(p) }
}

func TestDefaultAllows(t *testing.T) {
	tests := map[string]change{
		"what service-names makes":                dns("web.prod", "web.prod.svc", "web.prod.svc.cluster.local"),
		"another service of the namespace":        dns("db.prod"),
		"a pod behind a headless service":         dns("web-0.web.prod.svc.cluster.local"),
		"the same without the cluster domain":     dns("web-0.web.prod.svc"),
		"a wildcard in the svc form":              dns("*.prod.svc"),
		"a wildcard in the full form":             dns("*.prod.svc.cluster.local"),
		"a wildcard for the pods of a service":    dns("*.web.prod.svc.cluster.local"),
		"an internationalized label":              dns("xn--bcher-kva.prod.svc"),
		"hyphens in the third and fourth place":   dns("ci--web.prod.svc"),
		"the same name twice":                     dns("web.prod", "web.prod"),
		"a namespace that is a number":            dnsIn("2024", "web.2024.svc", "web.2024.svc.cluster.local"),
		"a namespace with hyphens":                dnsIn("team-a", "web.team-a", "web.team-a.svc"),
		"the svc form in a namespace called svc":  dnsIn("svc", "web.svc.svc"),
		"the full form in a namespace called svc": dnsIn("svc", "web.svc.svc.cluster.local", "web-0.web.svc.svc.cluster.local"),
		"the longer forms in a namespace com":     dnsIn("com", "web.com.svc", "web.com.svc.cluster.local"),
		"the longer forms in a namespace local":   dnsIn("local", "web.local.svc", "web.local.svc.cluster.local"),
		"a namespace called cluster":              dnsIn("cluster", "web.cluster", "web.cluster.svc.cluster.local"),
		"a namespace called pod":                  dnsIn("pod", "web.pod", "web.pod.svc.cluster.local"),
		"no names at all":                         func(_ *issuer.Pod, r *texts) { *r = texts{} },
		"no common name":                          commonName(""),
		"a later DNS name as the common name":     commonName("web.prod.svc.cluster.local"),
		"the UID as the common name":              commonName(testPod().UID),
		"the pod's name beside DNS names":         podAsCommonName("web-7d4b9c6f5-x2x8p"),
		"the UID without a DNS name":              func(p *issuer.Pod, r *texts) { r.CommonName, r.DNSNames = p.UID, nil },
		"the pod's SPIFFE ID":                     uri("spiffe://example.org/ns/prod/sa/web"),
		"the SPIFFE ID of a dotted account": func(p *issuer.Pod, r *texts) {
			p.ServiceAccount = "web.v1"
			uri("spiffe://example.org/ns/prod/sa/web.v1")(p, r)
		},
		"a pod with a dot in its name": pod(func(p *issuer.Pod) { p.Name = "web.v1" }),
	}
	p := newPolicy(t, testConfig())
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			pod, req := testPod(), testRequest()
			change(&pod, &req)
			if err := req.check(t, p, pod); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDefaultDenies(t *testing.T) {
	tests := map[string]struct {
		change change
		want   string // a part of the message
	}{
		// Names in other namespaces and other domains.
		"another namespace, short form":                {dns("web.other"), "web.other is not allowed: a pod in namespace prod may have <x>.prod, <x>.prod.svc and <x>.prod.svc.cluster.local"},
		"another namespace, svc form":                  {dns("web.other.svc"), "web.other.svc is not allowed"},
		"another namespace, full form":                 {dns("web.other.svc.cluster.local"), "is not allowed"},
		"a foreign name behind an own one":             {dns("web.prod", "web.other.svc", "db.prod"), "web.other.svc is not allowed"},
		"the API server":                               {dns("kubernetes.default.svc"), "reserved"},
		"a public name":                                {dns("example.com"), "is not allowed"},
		"a namespace that ends the same":               {dns("web.xprod.svc.cluster.local"), "is not allowed"},
		"a namespace that begins the same":             {dns("web.prodx.svc.cluster.local"), "is not allowed"},
		"the namespace as the service":                 {dns("prod.other.svc.cluster.local"), "is not allowed"},
		"another cluster domain":                       {dns("web.prod.svc.cluster.example"), "is not allowed"},
		"the cluster domain inside a public name":      {dns("web.prod.svc.cluster.local.example.com"), "is not allowed"},
		"the namespace without svc":                    {dns("web.prod.cluster.local"), "is not allowed"},
		"a pod's IP name":                              {dns("10-0-0-1.prod.pod.cluster.local"), "is not allowed"},
		"the namespace's own domain":                   {dns("prod.svc.cluster.local"), "is not allowed"},
		"the namespace's own domain, svc form":         {dns("prod.svc"), "is not allowed"},
		"a headless pod in the short form":             {dns("web-0.web.prod"), "is not allowed"},
		"a wildcard for another namespace":             {dns("*.other.svc"), "is not allowed"},
		"a wildcard for all namespaces":                {dns("*.svc.cluster.local"), "is not allowed"},
		"a wildcard for the cluster":                   {dns("*.cluster.local"), "is not allowed"},
		"a short name":                                 {dns("web"), "DNS name web is not allowed"},
		"localhost":                                    {dns("localhost"), "reserved"},
		"the namespace alone":                          {dns("prod"), "is not allowed"},
		"more names than fit":                          {dns(slices.Repeat([]string{"web.prod"}, names.MaxNames+1)...), "names are too many"},
		"svc: service b in namespace a, by suffix":     {dnsIn("svc", "b.a.svc"), "is not allowed"},
		"svc: a namespace's domain":                    {dnsIn("svc", "a.svc"), "a name that ends in .svc may be that of a host outside of the namespace; use <x>.svc.svc"},
		"svc: every service by a sloppy wildcard":      {dnsIn("svc", "*.svc"), "a * must be"},
		"com: a public name":                           {dnsIn("com", "example.com"), "use <x>.com.svc or <x>.com.svc.cluster.local"},
		"com: a host of a public name, by suffix":      {dnsIn("com", "www.example.com"), "is not allowed"},
		"com: every public name":                       {dnsIn("com", "*.com"), "a * must be"},
		"com: a public name behind an own one":         {dnsIn("com", "web.com.svc", "example.com"), "DNS name example.com is not allowed"},
		"local: the cluster domain itself":             {dnsIn("local", "cluster.local"), "is not allowed"},
		"local: a service of another namespace":        {dnsIn("local", "web.other.svc.cluster.local"), "is not allowed"},
		"internal: a host of a private network":        {dnsIn("internal", "vault.internal"), "use <x>.internal.svc"},
		"home: a host of a private network":            {dnsIn("home", "router.home"), "use <x>.home.svc"},
		"arpa: the domain of private networks":         {dnsIn("arpa", "home.arpa"), "use <x>.arpa.svc"},
		"onion: a hidden service":                      {dnsIn("onion", "x.onion"), "use <x>.onion.svc"},
		"local: a printer":                             {dnsIn("local", "printer.local"), "is not allowed"},
		"cluster: a service of another namespace":      {dnsIn("cluster", "web.other.svc.cluster"), "is not allowed"},
		"a namespace that is a number: an address":     {dnsIn("1", "127.1"), "ends in a number"},
		"a namespace that is a hex number: an address": {dnsIn("0x1", "10.0x1"), "ends in a number"},

		// Unusual spellings.
		"an upper-case letter":                  {dns("Web.prod"), "write it as"},
		"upper case in the namespace":           {dns("web.PROD"), "write it as"},
		"a trailing dot":                        {dns("web.prod."), "leave out the dot"},
		"a trailing dot after a foreign name":   {dns("example.com."), "leave out the dot"},
		"a leading dot":                         {dns(".prod.svc"), "is not a DNS name"},
		"an empty label":                        {dns("web..prod"), "is not a DNS name"},
		"the empty name":                        {dns(""), "is not a DNS name"},
		"a dot":                                 {dns("."), "leave out the dot"},
		"a NUL that cuts a C string":            {dns("example.com\x00.prod.svc"), "is not a DNS name"},
		"a NUL as a letter":                     {dns("web\x00.prod"), "is not a DNS name"},
		"a space":                               {dns("example.com .prod"), "is not a DNS name"},
		"a space in front":                      {dns(" web.prod"), "is not a DNS name"},
		"a line break":                          {dns("example.com\n.prod"), "is not a DNS name"},
		"a comma, which some split at":          {dns("example.com,web.prod"), "is not a DNS name"},
		"a slash":                               {dns("example.com/web.prod"), "is not a DNS name"},
		"a port":                                {dns("web.prod:443"), "is not a DNS name"},
		"a user":                                {dns("example.com@web.prod"), "is not a DNS name"},
		"an underscore":                         {dns("_https._tcp.web.prod.svc.cluster.local"), "is not a DNS name"},
		"a hyphen in front":                     {dns("-web.prod"), "is not a DNS name"},
		"a hyphen at the end":                   {dns("web-.prod"), "is not a DNS name"},
		"a full-width letter":                   {dns("ｗeb.prod"), "write it as"},
		"an ideographic full stop":              {dns("web。prod"), "write it as"},
		"a Cyrillic letter in the namespace":    {dns("web.рrod"), "write it as"},
		"a soft hyphen":                         {dns("web\u00ad.prod"), "write it as"},
		"a right-to-left mark":                  {dns("web\u200f.prod"), "is not a DNS name"},
		"invalid UTF-8":                         {dns("web\xff.prod"), "is not a DNS name"},
		"punycode that does not decode":         {dns("xn--a.prod.svc"), "is not a DNS name"},
		"punycode without an end":               {dns("xn--.prod.svc"), "is not a DNS name"},
		"punycode of plain ASCII":               {dns("xn--www-.prod.svc"), "is not a DNS name"},
		"punycode of a full stop":               {dns("xn--webprod-8o3f.prod"), "is not a DNS name"},
		"punycode of upper case":                {dns("xn--bcher-kvA.prod"), "write it as"},
		"punycode of a letter that maps to two": {dns("xn--x-sy8h.prod"), "is not a DNS name"},
		"a bare wildcard":                       {dns("*"), "must be"},
		"a wildcard in the middle":              {dns("web.*.svc.cluster.local"), "must be"},
		"a wildcard for the namespace":          {dns("web.*"), "must be"},
		"a wildcard in part of a label":         {dns("w*.prod"), "must be"},
		"two wildcards":                         {dns("*.*.prod.svc.cluster.local"), "must be"},
		"two stars":                             {dns("**.prod"), "must be"},
		"a wildcard that is all of it":          {dns("*."), "leave out the dot"},
		"a label of 64 letters":                 {dns(strings.Repeat("a", 64) + ".prod"), "is not a DNS name"},
		"a name of 254 bytes":                   {dns(strings.Repeat("a.", 125) + "prod"), "is not a DNS name"},
		"an IPv4 address":                       {dns("10.0.0.1"), "is an IP address"},
		"an IPv4 address in hex":                {dns("0x0a.0x1"), "ends in a number"},
		"an IPv4 address as a wildcard":         {dns("*.0.0.1"), "ends in a number"},
		"an IPv6 address":                       {dns("::1"), "is an IP address"},

		// Names of other types.
		"an IPv4 address as such":           {ips("10.0.0.1"), "IP address 10.0.0.1 is not allowed"},
		"an IPv6 address as such":           {ips("2001:db8::1"), "is not allowed"},
		"a loopback address":                {ips("127.0.0.1"), "reserved"},
		"an IPv4 address as IPv6":           {ips("::ffff:10.0.0.1"), "write it as"},
		"an address with a zone":            {ips("fe80::1%eth0"), "without a zone"},
		"an e-mail address":                 {email("web@prod.svc"), "e-mail address web@prod.svc is not allowed"},
		"an e-mail address with a tab":      {email("web\t@prod.svc"), "is not an e-mail"},
		"two e-mail addresses in one":       {email("a@b,c@d"), "is not an e-mail"},
		"an e-mail address in capital":      {email("Web@prod.svc"), "is not an e-mail"},
		"an e-mail address of a sub_domain": {email("web@prod_svc"), "must be a DNS name"},
		"an e-mail address in quotes":       {email(`"web"@prod.svc`), "is not an e-mail"},
		"an e-mail address with a quote":    {email(`we"b@prod.svc`), "is not an e-mail"},
		"an e-mail address with a NUL":      {email("root@example.com\x00@prod"), "is not an e-mail"},

		// URIs.
		"another service account":    {uri("spiffe://example.org/ns/prod/sa/admin"), "the only one is spiffe://example.org/ns/prod/sa/web"},
		"the same account elsewhere": {uri("spiffe://example.org/ns/other/sa/web"), "is not allowed"},
		"another trust domain":       {uri("spiffe://example.com/ns/prod/sa/web"), "is not allowed"},
		"a longer account":           {uri("spiffe://example.org/ns/prod/sa/web2"), "is not allowed"},
		"a longer path":              {uri("spiffe://example.org/ns/prod/sa/web/admin"), "is not allowed"},
		"the trust domain alone":     {uri("spiffe://example.org"), "is not allowed"},
		"another scheme":             {uri("https://example.org/ns/prod/sa/web"), "is not allowed"},
		"a query":                    {uri("spiffe://example.org/ns/prod/sa/web?x"), "is not a SPIFFE ID"},
		"an empty query":             {uri("spiffe://example.org/ns/prod/sa/web?"), "is not a SPIFFE ID"},
		"a fragment":                 {uri("spiffe://example.org/ns/prod/sa/web#x"), "is not a SPIFFE ID"},
		"a port in the trust domain": {uri("spiffe://example.org:443/ns/prod/sa/web"), "is not a SPIFFE ID"},
		"a user in the trust domain": {uri("spiffe://a@example.org/ns/prod/sa/web"), "leave out the user"},
		"a scheme in capitals":       {uri("SPIFFE://example.org/ns/prod/sa/web"), "write it as"},
		"no URI":                     {uri(""), "is not a URI"},
		"a trust domain in capitals": {uri("spiffe://EXAMPLE.org/ns/prod/sa/web"), "write it as"},
		"a path that goes up":        {uri("spiffe://example.org/ns/other/../prod/sa/web"), "dot segment"},
		"a path that goes nowhere":   {uri("spiffe://example.org/ns/./prod/sa/web"), "dot segment"},
		"two slashes":                {uri("spiffe://example.org/ns//prod/sa/web"), "empty segment"},
		"a slash at the end":         {uri("spiffe://example.org/ns/prod/sa/web/"), "empty segment"},
		"an encoded letter":          {uri("spiffe://example.org/ns/prod/sa/%77eb"), "percent-encoding"},
		"an encoded NUL":             {uri("spiffe://example.org/ns/prod/sa/web%00"), "percent-encoding"},
		"an encoded slash":           {uri("spiffe://example.org/ns/prod/sa%2Fweb"), "percent-encoding"},
		"a relative URI":             {uri("/ns/prod/sa/web"), "is not a URI"},
		"an opaque URI":              {uri("spiffe:example.org/ns/prod/sa/web"), "is not a URI"},
		"a foreign URI behind the own": {func(_ *issuer.Pod, r *texts) {
			r.URIs = append(r.URIs, "spiffe://a/b")
		}, "URI spiffe://a/b is not allowed"},
		"an account that makes the path go up":  {pod(func(p *issuer.Pod) { p.ServiceAccount = "../../other/sa/web" }), "service account"},
		"an e-mail address dressed as a URI":    {uri("mailto:root@example.com"), "is not a URI"},
		"the account as part of an opaque name": {uri("urn:spiffe://example.org/ns/prod/sa/web"), "is not a URI"},

		// Common names.
		"a common name from nowhere":             {commonName("example.com"), "common name example.com is not allowed: use one of the DNS names"},
		"a common name inside the namespace":     {commonName("db.prod"), "is not allowed"},
		"the service account as the common name": {commonName("web"), "is not allowed"},
		"another pod's name as the common name":  {commonName("web-1"), "is not allowed"},
		"a pod named like a public host":         {podAsCommonName("admin-1.example.com"), "is not allowed"},
		"a pod named like a service":             {podAsCommonName("my-db.other.svc"), "is not allowed"},
		"a pod named like a database user":       {podAsCommonName("postgres"), "common name postgres is not allowed"},
		"a pod named like a host, without names": {aloneAsCommonName("step-ca-0"), "common name step-ca-0 is not allowed: use one of the DNS names, the UID of the pod, or, beside a DNS name,"},
		"a pod of a controller, without names":   {aloneAsCommonName("web-7d4b9c6f5-x2x8p"), "is not allowed"},
		"a common name in capitals":              {commonName("WEB.PROD"), "is not allowed"},
		"a common name with a trailing dot":      {commonName("web.prod."), "is not allowed"},
		"a common name with a NUL":               {commonName("web.prod\x00"), "not printable"},
		"a common name with a second attribute":  {commonName("web.prod, o=admin"), "is not allowed"},
		"a common name that looks alike":         {commonName("wеb.prod"), "is not allowed"},

		// Identities that no API server issues.
		"no namespace":              {pod(func(p *issuer.Pod) { p.Namespace = "" }), "namespace"},
		"a namespace of two labels": {dnsIn("other.svc", "web.other.svc"), "namespace"},
		"a wildcard namespace":      {pod(func(p *issuer.Pod) { p.Namespace = "*" }), "namespace"},
		"no pod name":               {pod(func(p *issuer.Pod) { p.Name = "" }), "name"},
		"no UID":                    {pod(func(p *issuer.Pod) { p.UID = "" }), "UID"},
		"a UID that is a host":      {pod(func(p *issuer.Pod) { p.UID = "example.com" }), "UID"},
		"no service account":        {pod(func(p *issuer.Pod) { p.ServiceAccount = "" }), "service account"},
	}
	p := newPolicy(t, testConfig())
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod, req := testPod(), testRequest()
			test.change(&pod, &req)
			err := req.check(t, p, pod)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want a denial with %q", err, test.want)
			}
		})
	}
}

// TestNormalFormIsBeforeCEL checks that even a policy that allows everything rejects
// ambiguous names.
func TestNormalFormIsBeforeCEL(t *testing.T) {
	p := newPolicy(t, testConfig(Validation{Expression: "true"}))
	for name, change := range map[string]change{
		"DNS name":       dns("example.com\x00.prod"),
		"IP address":     ips("::ffff:10.0.0.1"),
		"URI":            uri("spiffe://example.org/a/../b"),
		"e-mail address": email("a@b,c@d"),
		"common name":    commonName("a\x00"),
		"identity":       pod(func(p *issuer.Pod) { p.Namespace = "a.b" }),
	} {
		pod, req := testPod(), testRequest()
		change(&pod, &req)
		if err := req.check(t, p, pod); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	pod, req := testPod(), testRequest()
	req.DNSNames, req.EmailAddresses, req.CommonName = []string{"*.example.com", "web"}, []string{"root@example.com"}, "system:node:a"
	ips("10.0.0.1", "fd00::1")(&pod, &req)
	if err := req.check(t, p, pod); err != nil {
		t.Errorf("normal names: %v", err)
	}
}

func TestAllowShortNames(t *testing.T) {
	config := testConfig()
	config.AllowShortNames = true
	p := newPolicy(t, config)
	for name, allowed := range map[string]bool{
		"web": true, "web.prod": true, "web.prod.svc": true,
		"*": false, "web.": false, "Web": false, "web.other": false, "example.com": false, "1": false,
	} {
		pod, req := testPod(), testRequest()
		dns(name)(&pod, &req)
		if err := req.check(t, p, pod); (err == nil) != allowed {
			t.Errorf("%q: got %v, want allowed: %t", name, err, allowed)
		}
	}
}

// owner returns the namespace that owns a name. It reads the labels from the right.
func owner(name, clusterDomain string) string {
	labels := strings.Split(name, ".")
	domain := strings.Split(clusterDomain, ".")
	if n := len(labels) - len(domain); n >= 3 && slices.Equal(labels[n:], domain) {
		if labels[n-1] != "svc" {
			return ""
		}
		return labels[n-2]
	}
	switch n := len(labels); {
	case n >= 3 && labels[n-1] == "svc":
		return labels[n-2]
	case n == 2 && !slices.Contains(names.Domains(), labels[1]) && labels[1] != domain[len(domain)-1]:
		return labels[1]
	}
	return ""
}

// A namespace that is named like a domain gets the longer forms of its names, and none
// directly under the domain.
func TestNamespacesNamedLikeDomains(t *testing.T) {
	p := newPolicy(t, testConfig())
	for _, namespace := range append(names.Domains(), "local") {
		for name, allowed := range map[string]bool{
			"web." + namespace: false, "web." + namespace + ".svc": true, "web." + namespace + ".svc.cluster.local": true,
		} {
			pod, req := testPod(), testRequest()
			dnsIn(namespace, name)(&pod, &req)
			if err := req.check(t, p, pod); (err == nil) != allowed {
				t.Errorf("%s in namespace %s: %v, want allowed: %t", name, namespace, err, allowed)
			}
		}
	}
	// The registries' lists: RFC 6761, RFC 6762 (appendix G), RFC 7686, RFC 8375, RFC 9476,
	// and ICANN's internal.
	for _, domain := range strings.Fields("arpa test localhost invalid example local intranet internal private corp home lan onion alt") {
		if !slices.Contains(names.Domains(), domain) {
			t.Errorf("%s is missing", domain)
		}
	}
}

// TestOwners checks all names of up to four labels, without and with the cluster
// domain, from labels that are easy to confuse: the policy allows a name to a
// namespace if and only if the namespace owns the name.
func TestOwners(t *testing.T) {
	labels := []string{"svc", "cluster", "k8s", "com", "a", "*"}
	for _, domain := range []string{"cluster.k8s", "k8s", "svc.cluster"} {
		c := testConfig()
		c.ClusterDomain = names.Must(names.ParseClusterDomain(domain))
		p := newPolicy(t, c)
		for name := range allNames(labels, 4, domain) {
			if _, err := names.ParseDNSName(name); err != nil {
				if !strings.Contains(name, "*") {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			for _, namespace := range labels[:len(labels)-1] {
				pod, req := testPod(), testRequest()
				dnsIn(namespace, name)(&pod, &req)
				err := req.check(t, p, pod)
				if want := owner(name, domain) == namespace; (err == nil) != want {
					t.Errorf("%s in namespace %s of %s: got %v, want allowed: %t", name, namespace, domain, err, want)
				}
			}
		}
	}
}

// allNames yields all names of 1 to depth labels, without and with the domain.
func allNames(labels []string, depth int, domain string) func(func(string) bool) {
	return func(yield func(string) bool) {
		level := []string{""}
		for range depth {
			var next []string
			for _, suffix := range level {
				for _, label := range labels {
					name := strings.TrimSuffix(label+"."+suffix, ".")
					next = append(next, name)
					if !yield(name) || !yield(name+"."+domain) {
						return
					}
				}
			}
			level = next
		}
	}
}

// FuzzDefault checks that a pod gets only its own names, whatever it requests. Lists
// have one name per line.
func FuzzDefault(f *testing.F) {
	for _, seed := range []struct{ namespace, pod, dns, ips, uris, emails, commonName string }{
		{"prod", "web-0", "web.prod\nweb.prod.svc.cluster.local", "", "spiffe://example.org/ns/prod/sa/web", "", "web.prod"},
		{"shop", "web-0", "web.shop\n*.web.shop.svc", "", "spiffe://example.org/ns/shop/sa/web", "", ""},
		{"shop", "web-0", "web.shop\ndb.prod", "", "", "", ""},
		{"shop", "web-0", "web.notshop.svc", "", "", "", ""},
		{"shop", "web-0", "", "10.0.0.1", "", "", ""},
		{"shop", "web-0", "", "::ffff:10.0.0.1", "", "", ""},
		{"shop", "web-0", "", "fe80::1%eth0", "", "", ""},
		{"shop", "web-0", "", "", "spiffe://example.org/ns/prod/sa/web", "", ""},
		{"shop", "web-0", "", "", "spiffe://example.org/ns/shop/sa/web/admin", "", ""},
		{"shop", "web-0", "", "", "spiffe://example.org/ns/prod/../shop/sa/web", "", ""},
		{"shop", "web-0", "", "", "spiffe://example.org/ns/shop/sa/w%65b", "", ""},
		{"shop", "web-0", "", "", "SPIFFE://EXAMPLE.org/ns/shop/sa/web", "", ""},
		{"shop", "web-0", "", "", "spiffe://example.org\x00/ns/shop/sa/web", "", ""},
		{"shop", "web-0", "", "", "", "web@shop.svc", ""},
		{"shop", "web-0", "", "", "", "a@b,c@d", ""},
		{"svc", "web-0", "prod.svc", "", "", "", ""},
		{"com", "web-0", "example.com", "", "", "", ""},
		{"svc", "web-0", "b.a.svc", "", "", "", ""},
		{"svc", "web-0", "a.svc.svc", "", "", "", "web-0"},
		{"com", "admin.example.com", "www.example.com", "", "", "", "admin.example.com"},
		{"local", "a-b.c", "web.other.svc.cluster.local", "", "", "", "a-b.c"},
		{"cluster", "postgres", "*.web.cluster.svc.cluster.local", "", "", "", "postgres"},
		{"prod", "web-0", "xn--bcher-kva.prod.svc", "", "", "", "web-0"},
		{"prod", "web-0", "xn--dbprod-jn68a.prod\nweb。prod\nｗeb.prod", "", "", "", "web-0"},
		{"1", "web-0", "127.1", "", "", "", "web.prod\x00"},
		{"prod", "web-0", "WEB.prod.", "", "", "", "*.prod"},
	} {
		f.Add(seed.namespace, seed.pod, seed.dns, seed.ips, seed.uris, seed.emails, seed.commonName)
	}
	p := newPolicy(f, testConfig())
	f.Fuzz(func(t *testing.T, namespace, podName, dnsNames, ips, uris, emails, commonName string) {
		pod, req := testPod(), testRequest()
		pod.Namespace, pod.Name = namespace, podName
		req.CommonName, req.DNSNames, req.EmailAddresses = commonName, lines(dnsNames), lines(emails)
		req.URIs, req.IPAddresses = lines(uris), lines(ips)
		if err := req.check(t, p, pod); err != nil {
			if strings.Contains(err.Error(), "cannot be evaluated") {
				t.Fatalf("the error is not only a denial: %v", err)
			}
			return
		}
		checkOwnNames(t, pod, req)
		checkOwnIdentity(t, pod, req)
	})
}

// lines returns the lines of the text; none if the text is empty.
func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// checkOwnNames reads each DNS name as the most lenient client could: ignoring case
// and script, with or without a trailing dot.
func checkOwnNames(t *testing.T, pod issuer.Pod, req texts) {
	for _, name := range req.DNSNames {
		host, wildcard := strings.CutPrefix(strings.TrimSuffix(strings.ToLower(name), "."), "*.")
		read, err := idna.New(idna.MapForLookup(), idna.CheckHyphens(false)).ToASCII(host)
		if wildcard {
			read = "*." + read
		}
		if err != nil || read != name || owner(read, "cluster.local") != pod.Namespace {
			t.Errorf("namespace %q got %q, which reads as %q (%v) and belongs to %q", pod.Namespace, name, read, err, owner(read, "cluster.local"))
		}
		for i, c := range []byte(name) {
			star := c == '*' && i == 0 && wildcard
			if !star && c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				t.Errorf("%q contains %q at %d", name, c, i)
			}
		}
	}
}

// checkOwnIdentity checks all other names.
func checkOwnIdentity(t *testing.T, pod issuer.Pod, req texts) {
	for _, uri := range req.URIs {
		if uri != "spiffe://example.org/ns/"+pod.Namespace+"/sa/"+pod.ServiceAccount {
			t.Errorf("%+v got the URI %q", pod, uri)
		}
	}
	if len(req.IPAddresses) > 0 || len(req.EmailAddresses) > 0 {
		t.Errorf("%+v got the IP addresses %q and the e-mail addresses %q", pod, req.IPAddresses, req.EmailAddresses)
	}
	allowed := append([]string{"", pod.UID}, req.DNSNames...)
	if len(req.DNSNames) > 0 && strings.Contains(pod.Name, "-") && !strings.Contains(pod.Name, ".") {
		allowed = append(allowed, pod.Name)
	}
	if !slices.Contains(allowed, req.CommonName) {
		t.Errorf("%+v with the DNS names %q got the common name %q", pod, req.DNSNames, req.CommonName)
	}
}
