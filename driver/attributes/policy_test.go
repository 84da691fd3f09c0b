package attributes_test

import (
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/policy"
)

// normalForm is the policy without an opinion: all it refuses are names that
// are not in their one normal form.
func normalForm(t testing.TB) *policy.Policy {
	t.Helper()
	p, err := policy.New(policy.Config{
		ClusterDomain: config().ClusterDomain,
		TrustDomain:   config().TrustDomain,
		Validations:   []policy.Validation{{Expression: "true"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkNormalForm leaves out the common name, about which the policy alone
// decides.
func checkNormalForm(t *testing.T, p *policy.Policy, r issuer.Request) {
	t.Helper()
	r.CommonName = ""
	if err := p.Check(t.Context(), pod, r); err != nil {
		t.Errorf("the policy does not take names that Parse gives: %v", err)
	}
}

// TestNamesAreInThePolicysNormalForm keeps users from a denial that is none:
// what the policy could never allow is an invalid attribute.
func TestNamesAreInThePolicysNormalForm(t *testing.T) {
	p := normalForm(t)
	accepted := 0
	check := func(values map[string]string) {
		if got, err := attributes.Parse(values, pod, "", config()); err == nil {
			accepted++
			checkNormalForm(t, p, got.Request)
		}
	}
	for _, c := range nameCases {
		check(map[string]string{c.key: c.value})
	}
	check(fullRequest())
	if accepted < 20 {
		t.Errorf("only %d cases have names to check", accepted)
	}
}

// TestCommonNameWithoutAskingIsInThePolicysNormalForm has no user who could
// choose another one.
func TestCommonNameWithoutAskingIsInThePolicysNormalForm(t *testing.T) {
	for _, name := range []string{"web-0", "postgres", "admin-0.example.com"} {
		other := pod
		other.Name = name
		got, err := attributes.Parse(nil, other, "", config())
		if err != nil {
			t.Errorf("pod %s: %v", name, err)
		} else if err := normalForm(t).Check(t.Context(), other, got.Request); err != nil {
			t.Errorf("pod %s: %v", name, err)
		}
	}
}
