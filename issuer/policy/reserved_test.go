package policy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/issuer"
)

// Whoever has a name of an authority can take its place.
func TestReservedNames(t *testing.T) {
	c := testConfig(Validation{Expression: "true"})
	c.Reserved = []string{"ca.prod.svc.cluster.local", "ra.prod", "ra", "10.0.0.1"}
	p := newPolicy(t, c)
	for name, change := range map[string]func(*issuer.Request){
		"the name":       func(r *issuer.Request) { r.DNSNames = append(r.DNSNames, "ca.prod.svc.cluster.local") },
		"a wildcard":     func(r *issuer.Request) { r.DNSNames = append(r.DNSNames, "*.prod.svc.cluster.local") },
		"a short one":    func(r *issuer.Request) { r.DNSNames = append(r.DNSNames, "ra") },
		"common name":    func(r *issuer.Request) { r.CommonName = "ra.prod" },
		"the IP address": func(r *issuer.Request) { r.IPAddresses = append(r.IPAddresses, netip.MustParseAddr("10.0.0.1")) },
	} {
		req := testRequest()
		change(&req)
		if err := p.Check(context.Background(), testPod(), req); !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "reserved") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, fine := range []string{"*.ca.prod.svc.cluster.local", "x.ra.prod", "ca.prod.svc", "ra2"} {
		req := testRequest()
		req.DNSNames = append(req.DNSNames, fine)
		if err := p.Check(context.Background(), testPod(), req); err != nil {
			t.Errorf("%s: %v", fine, err)
		}
	}
}

func TestExpressionsSeeTheIssuer(t *testing.T) {
	for name, want := range map[string]error{"edge": nil, "default": issuer.Denied} {
		c := testConfig(Validation{Expression: "request.issuer == 'edge'"})
		c.Issuer = name
		if err := newPolicy(t, c).Check(context.Background(), testPod(), testRequest()); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
