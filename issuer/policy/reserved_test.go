package policy

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// A pod with the name of a CA or of the registration authority could impersonate it.
// The policy denies every form of a reserved name, whichever form the configuration
// uses.
func TestReservedNames(t *testing.T) {
	dns := func(name string) change {
		return func(_ *issuer.Pod, r *texts) { r.DNSNames = append(r.DNSNames, name) }
	}
	commonName := func(name string) change { return func(_ *issuer.Pod, r *texts) { r.CommonName = name } }
	attempts := map[string]change{
		"the full form":              dns("ca.prod.svc.cluster.local"),
		"the svc form":               dns("ca.prod.svc"),
		"the form with a namespace":  dns("ca.prod"),
		"the short form":             dns("ca"),
		"a wildcard":                 dns("*.prod.svc.cluster.local"),
		"a wildcard in the svc form": dns("*.prod.svc"),
		"common name":                commonName("ca.prod"),
		"common name in capitals":    commonName("CA.prod.SVC"),
		"common name with a dot":     commonName("ca.prod.svc.cluster.local."),
		"common name of full width":  commonName("ｃa.prod"),
		"common name as a wildcard":  commonName("*.PROD"),
	}
	for _, host := range []string{
		"ca.prod.svc.cluster.local", "ca.prod.svc.cluster.local.", "CA.Prod.svc.Cluster.local", "ca.prod.svc", "ca.prod.svc.", "ca.prod",
	} {
		c := testConfig(Validation{Expression: "true"})
		c.Reserved = NewReserved(c.ClusterDomain, names.Must(names.ParseHost(host)))
		p := newPolicy(t, c)
		for name, change := range attempts {
			pod, req := testPod(), testRequest()
			change(&pod, &req)
			if err := req.check(t, p, pod); err == nil || !strings.Contains(err.Error(), "reserved") {
				t.Errorf("%s of %s: %v", name, host, err)
			}
		}
		for _, fine := range []string{"*.ca.prod.svc.cluster.local", "x.ca.prod", "ca2.prod.svc", "ca.other.svc", "ca2"} {
			pod, req := testPod(), testRequest()
			dns(fine)(&pod, &req)
			if err := req.check(t, p, pod); err != nil {
				t.Errorf("%s with %s reserved: %v", fine, host, err)
			}
		}
	}
}

// Only hosts in the cluster have the additional forms of a Service's name.
func TestReservedHostsOutsideOfTheCluster(t *testing.T) {
	c := testConfig(Validation{Expression: "true"})
	c.Reserved = NewReserved(c.ClusterDomain, names.Must(names.ParseAll(names.ParseHost, "ca.example.com", "10.0.0.1", "fd00::1", "web-0.ca.prod.svc", "ra.svc.svc.cluster.local"))...)
	p := newPolicy(t, c)
	for _, test := range []struct {
		change change
		denied bool
	}{
		{dns("ca.example.com"), true},
		{dns("*.example.com"), true},
		{dns("ca"), false},
		{dns("ca.example"), false},
		{ips("10.0.0.1"), true},
		{ips("10.0.0.2"), false},
		{commonName("10.0.0.1"), true},
		{commonName("::ffff:10.0.0.1"), true},
		{commonName("::FFFF:a00:1"), true},
		{commonName("[::ffff:10.0.0.1]"), true},
		{commonName("10.1"), true},
		{commonName("10.0.1"), true},
		{commonName("0xA.1"), true},
		{commonName("012.0.0.1"), true},
		{commonName("167772161"), true},
		{commonName("0x0a000001"), true},
		{commonName("10.0.0.1."), true},
		{commonName("10.0.0.2"), false},
		{commonName("10.2"), false},
		{commonName("1_0.1"), false},
		{commonName("0b1010.1"), false},
		{commonName("fd00:0:0::1"), true},
		{commonName("[FD00::1]"), true},
		{commonName("fd00::1%eth0"), true},
		{ips("fd00::1"), true},
		{commonName("ca.example.com.."), true},
		{commonName("ca。example．com｡"), true},
		{commonName("c*.example.com"), true},
		{commonName("*a.EXAMPLE.com."), true},
		{commonName("c*a.example.com"), true},
		{commonName("ca*a.example.com"), false},
		{commonName("d*.example.com"), false},
		{uri("https://ca.example.com/"), true},
		{uri("https://ca.example.com:9000"), true},
		{uri("https://10.0.0.1"), true},
		{uri("https://[fd00::1]"), true},
		{uri("https://www.example.com"), false},
		{uri("spiffe://ca.example.com/ns/prod/sa/web"), false},
		{dns("web-0.ca"), true},
		{dns("web-0.ca.prod"), true},
		{dns("web-0.ca.prod.svc.cluster.local"), true},
		{dns("web-0"), false},
		{dns("ra.svc"), true},
		{dns("ra.svc.svc"), true},
		{commonName(""), false},
	} {
		pod, req := testPod(), testRequest()
		req.CommonName, req.DNSNames = "", []string{"web.prod"}
		test.change(&pod, &req)
		err := req.check(t, p, pod)
		if denied := err != nil && strings.Contains(err.Error(), "reserved"); denied != test.denied || !denied && err != nil {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

// The API server and the local machine are the same in every cluster, and no
// configuration names them.
func TestHostsOfEveryCluster(t *testing.T) {
	for _, domain := range []string{"cluster.local", "k8s"} {
		c := testConfig(Validation{Expression: "true"})
		c.ClusterDomain = names.Must(names.ParseClusterDomain(domain))
		p := newPolicy(t, c)
		for name, reserved := range map[string]bool{
			"kubernetes": true, "kubernetes.default": true, "kubernetes.default.svc": true, "kubernetes.default.svc." + domain: true,
			"*.default":     false, // not in the grammar
			"*.default.svc": true, "*.default.svc." + domain: true,
			"kubernetes.other": false, "web.default.svc": false, "*.svc." + domain: false, "kubernetes.default.svc.example": false,
			"localhost": true, "x.localhost": true, "*.x.localhost": true, "localhost.localdomain": true, "ip6-localhost": true, "ip6-loopback": true,
			"localhost4": true, "localhost6": true, "localhost6.localdomain6": true, "*.localdomain4": false, // not in the grammar
			"localhost.prod": false, "notlocalhost": false, "localhost.example.com": false,
		} {
			for kind, change := range map[string]change{"DNS name": dns(name), "common name": commonName(name), "common name in capitals": commonName(strings.ToUpper(name) + ".")} {
				pod, req := testPod(), testRequest()
				change(&pod, &req)
				err := req.check(t, p, pod)
				if name == "*.default" || name == "*.localdomain4" {
					if err == nil {
						t.Errorf("%s %s is allowed", kind, name)
					}
				} else if got := err != nil && strings.Contains(err.Error(), "reserved"); got != reserved {
					t.Errorf("%s %s with the cluster domain %s: %v", kind, name, domain, err)
				}
			}
		}
		for _, address := range []string{"0.0.0.0", "0", "::", "127.1", "0x7f000001", "[::1]"} { // all reach the local machine
			pod, req := testPod(), testRequest()
			commonName(address)(&pod, &req)
			if err := req.check(t, p, pod); err == nil || !strings.Contains(err.Error(), "impersonate localhost") {
				t.Errorf("common name %s: %v", address, err)
			}
		}
		for address, owner := range map[string]string{
			"::ffff:127.0.0.1": localhost, "::ffff:0:0": localhost, "127.0.0.1.": localhost,
			"169.254.169.254": "metadata service", "0xa9fea9fe": "metadata service", "::ffff:169.254.0.1": "metadata service",
			"fe80::1": "metadata service", "FE80::1%eth0": "metadata service",
			"224.0.0.1": "all hosts", "ff02::1": "all hosts", "255.255.255.255": "all hosts", "4294967295": "all hosts",
		} {
			pod, req := testPod(), testRequest()
			commonName(address)(&pod, &req)
			if err := req.check(t, p, pod); err == nil || !strings.Contains(err.Error(), owner) {
				t.Errorf("common name %s: %v", address, err)
			}
		}
		for _, ip := range []string{"169.254.169.254", "fe80::1", "fe80::a9fe:a9fe"} {
			for kind, change := range map[string]change{"address": ips(ip), "host of a URI": uri("https://" + inURI(ip) + "/x")} {
				pod, req := testPod(), testRequest()
				change(&pod, &req)
				if err := req.check(t, p, pod); err == nil || !strings.Contains(err.Error(), "metadata service") {
					t.Errorf("%s %s: %v", kind, ip, err)
				}
			}
		}
		for _, ip := range []string{"127.0.0.1", "127.255.255.254", "::1"} {
			for kind, change := range map[string]change{"address": ips(ip), "common name": commonName(ip), "host of a URI": uri("https://" + inURI(ip) + "/x")} {
				pod, req := testPod(), testRequest()
				change(&pod, &req)
				if err := req.check(t, p, pod); err == nil || !strings.Contains(err.Error(), "impersonate localhost") {
					t.Errorf("%s %s: %v", kind, ip, err)
				}
			}
		}
	}
}

func inURI(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// A CA has more names than the one in its URL. All policies that share the set deny them
// once the CA has shown its certificate.
func TestLearnedNames(t *testing.T) {
	c := testConfig(Validation{Expression: "true"})
	c.Reserved = NewReserved(c.ClusterDomain, names.Must(names.ParseHost("ca.example.com")))
	policies := []*Policy{newPolicy(t, c), newPolicy(t, c)}
	leaf := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Step Online CA"},
		DNSNames:    []string{"Step-CA.identity.svc", "ca-internal.example.com", "*.pki.example.com", "bad_name.example.com", "", "web.shop"},
		IPAddresses: []net.IP{net.IPv4(10, 9, 8, 7), net.ParseIP("fd00::7")},
	}
	attempts := []change{
		dns("step-ca"), dns("step-ca.identity"), dns("step-ca.identity.svc"), dns("step-ca.identity.svc.cluster.local"), dns("*.identity.svc"),
		dns("ca-internal.example.com"), dns("*.pki.example.com"), dns("web.shop"), ips("10.9.8.7"), ips("fd00::7"),
		commonName("STEP-CA.identity."), commonName("ca-internal.example.com"), commonName("10.9.2055"),
	}
	for _, learned := range []bool{false, true} {
		if learned {
			c.Reserved.Learn(leaf)
		}
		for i, change := range attempts {
			for _, p := range policies {
				pod, req := testPod(), testRequest()
				change(&pod, &req)
				if err := req.check(t, p, pod); (err != nil && strings.Contains(err.Error(), "reserved")) != learned {
					t.Errorf("attempt %d, learned %t: %v", i, learned, err)
				}
			}
		}
	}
	for _, fine := range []change{dns("web.prod.svc"), dns("a.pki.example.com"), commonName("Step Online CA"), commonName("")} {
		pod, req := testPod(), testRequest()
		fine(&pod, &req)
		if err := req.check(t, policies[0], pod); err != nil {
			t.Error(err)
		}
	}
}

// A CA whose certificates have ever new names, or too many of them, does not fill the
// memory. The configured names stay.
func TestLearnedNamesAreBounded(t *testing.T) {
	c := testConfig(Validation{Expression: "true"})
	c.Reserved = NewReserved(c.ClusterDomain, names.Must(names.ParseHost("ca.example.com")))
	p := newPolicy(t, c)
	largest := 0
	var running sync.WaitGroup
	for n := range 200 {
		leaf := &x509.Certificate{}
		for i := range 1000 {
			leaf.DNSNames = append(leaf.DNSNames, fmt.Sprintf("a%d.b%d.svc", i, n))
		}
		running.Go(func() { // certificates are learned while policies are evaluated
			pod, req := testPod(), testRequest()
			if err := req.check(t, p, pod); err != nil {
				t.Error(err)
			}
		})
		c.Reserved.Learn(leaf)
		largest = max(largest, c.Reserved.learned.size())
	}
	running.Wait()
	if largest > maxLearned+5*(names.MaxNames+1) {
		t.Errorf("%d forms", largest)
	}
	for _, name := range []string{"ca.example.com", "kubernetes.default", "a0.b199"} {
		pod, req := testPod(), testRequest()
		dns(name)(&pod, &req)
		if err := req.check(t, p, pod); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
}

func TestExpressionsSeeTheIssuer(t *testing.T) {
	for name, want := range map[string]error{"edge": nil, "default": issuer.Denied} {
		c := testConfig(Validation{Expression: "request.issuer == 'edge'"})
		c.Issuer = name
		if err := testRequest().check(t, newPolicy(t, c), testPod()); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A custom policy may allow common names that are not host names.
func TestCommonNamesOfPeople(t *testing.T) {
	for name, validations := range map[string][]Validation{
		"":             nil,
		"the same one": {{Expression: `request.commonName == 'John Doe'`}},
		"Unicode":      {{Expression: `request.commonName in ['', 'John Doe', 'Jürgen Müller']`}},
	} {
		p := newPolicy(t, testConfig(validations...))
		pod, req := testPod(), testRequest()
		req.CommonName = "John Doe"
		err := req.check(t, p, pod)
		if allowed := len(validations) > 0; (err == nil) != allowed {
			t.Errorf("%q: %v, want allowed: %t", name, err, allowed)
		}
		if len(validations) == 0 && (err == nil || !strings.Contains(err.Error(), "common name John Doe is not allowed")) {
			t.Errorf("the default policy: %v", err)
		}
	}
}

// A wildcard that covers several reserved hosts always gets the same message.
func TestMessageForWildcardIsStable(t *testing.T) {
	hosts := names.Must(names.ParseAll(names.ParseHost, "b.example.com", "a.example.com", "d.example.com", "c.example.com"))
	c := testConfig()
	c.Reserved = NewReserved(c.ClusterDomain, hosts...)
	p := newPolicy(t, c)
	req := issuer.Request{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "*.example.com"))}
	for range 20 {
		if err := p.Check(t.Context(), testPod(), req); err == nil || !strings.HasSuffix(err.Error(), "impersonate a.example.com") {
			t.Fatal(err)
		}
	}
}
