package policy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
)

// Results go on after the first denial, and Check returns the first.
func TestResults(t *testing.T) {
	p, err := policy.New(policy.Config{
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")),
		Validations: []policy.Validation{
			{Expression: "request.dnsNames.size() == 2"},
			{Expression: "pod.namespace == 'other'", Message: "only in other"},
			{Expression: "request.dnsNames[7] == ''"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	pod := issuer.Pod{Namespace: "shop", Name: "a-0", UID: "uid", ServiceAccount: "a"}
	req := issuer.Request{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "a.shop", "localhost"))}
	wants := []struct{ rule, expression, denied string }{
		{"identity of the pod", "", ""},
		{"number of names", "", ""},
		{"reserved names", "", "the name localhost is reserved"},
		{"subject fields and template data", "", ""},
		{"validations[0]", "request.dnsNames.size() == 2", ""},
		{"validations[1]", "pod.namespace == 'other'", "denied: only in other"},
		{"validations[2]", "request.dnsNames[7] == ''", "validations[2] cannot be evaluated for this request"},
	}
	var first error
	i := 0
	for got := range p.Results(t.Context(), pod, req) {
		if first == nil {
			first = got.Err
		}
		want := wants[i]
		i++
		if got.Rule != want.rule || got.Expression != want.expression || (got.Err == nil) != (want.denied == "") {
			t.Errorf("%+v, want %+v", got, want)
		}
		if got.Err != nil && (!errors.Is(got.Err, issuer.Denied) || !strings.Contains(got.Err.Error(), want.denied)) {
			t.Errorf("%s: %v, want %q", got.Rule, got.Err, want.denied)
		}
	}
	if i != len(wants) {
		t.Errorf("%d results, want %d", i, len(wants))
	}
	if err := p.Check(t.Context(), pod, req); err == nil || err.Error() != first.Error() {
		t.Errorf("Check says %v, the first result %v", err, first)
	}
}
