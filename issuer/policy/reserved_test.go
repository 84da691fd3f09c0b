package policy

import (
	"errors"
	"strings"
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
		c.Reserved = names.Must(names.ParseAll(names.ParseHost, host))
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
	c.Reserved = names.Must(names.ParseAll(names.ParseHost, "ca.example.com", "10.0.0.1", "web-0.ca.prod.svc", "ra.svc.svc.cluster.local"))
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
		{dns("web-0.ca"), true},
		{dns("web-0.ca.prod"), true},
		{dns("web-0.ca.prod.svc.cluster.local"), true},
		{dns("web-0"), false},
		{dns("ra.svc"), true},
		{dns("ra.svc.svc"), true},
		{commonName(""), false},
	} {
		pod, req := testPod(), testRequest()
		req.DNSNames = nil
		test.change(&pod, &req)
		err := req.check(t, p, pod)
		if denied := err != nil && strings.Contains(err.Error(), "reserved"); denied != test.denied || !denied && err != nil {
			t.Errorf("%+v: %v", req, err)
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
