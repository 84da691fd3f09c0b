package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/cmd/kubectl-step_csi/policytest"
)

// Scripts rely on the exit status: 0 allowed, 1 denied, 2 a mistake.
func TestPolicyTestStatus(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(broken, []byte("policy: {validations: [{expression: 'pod.'}]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   string
		status int
		stdout string
		stderr string
	}{
		{"--namespace shop --service-names a", 0, "Allowed.\n", ""},
		{"-n shop --service-names a", 0, "Pod shop/test-pod", ""},
		{"--dns-names a.example.com", 1, "Denied. The pod's event:\n", ""},
		{"--attribute no-such=1", 1, "no-such", ""},
		{"--spiffe false --common-name a", 1, "without a subject alternative name", ""},
		{"-f policytest/testdata/values.yaml --pod policytest/testdata/shop.yaml", 1, "volume web, issuer web", ""},
		{"-f policytest/testdata/values.yaml -n edge --dns-names www.example.com", 0, "www.example.com", ""},
		{"--help", 0, "Usage: kubectl step-csi policy test", ""},
		{"--no-such", 2, "", "flag provided but not defined"},
		{"-o yaml", 2, "", "the only format is json"},
		{"a", 2, "", `unexpected argument "a"`},
		{"--attribute no-such", 2, "", "write KEY=VALUE"},
		{"--dns-names a.default --dns-names b.default", 2, "", "the attribute dns-names is given twice"},
		{"--dns-names a.default --attribute dns-names=b.default", 2, "", "the attribute dns-names is given twice"},
		{"--dns-names a.default --pod policytest/testdata/shop.yaml", 2, "", "--dns-names: the request is that of the manifests in --pod"},
		{"-f no-such.yaml", 2, "", "open no-such.yaml"},
		{"-f " + broken, 2, "", broken + ": policy: ERROR: validations[0].expression:1:5: Syntax error"},
		{"--namespace Shop", 2, "", "Shop"},
	} {
		var stdout, stderr strings.Builder
		status := run(t.Context(), append([]string{"policy", "test"}, strings.Fields(test.args)...), strings.NewReader(""), &stdout, &stderr)
		if status != test.status || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) ||
			(test.stdout == "") != (stdout.Len() == 0) || (test.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("policy test %s: status %d, want %d\n%s%s", test.args, status, test.status, &stdout, &stderr)
		}
	}
}

// -o json has the same verdicts.
func TestPolicyTestJSON(t *testing.T) {
	var stdout, stderr strings.Builder
	status := run(t.Context(), strings.Fields("policy test -o json -f - -n shop --dns-names a.shop,b.example.com"), strings.NewReader("policy: {allowShortNames: true}"), &stdout, &stderr)
	var verdicts []policytest.Verdict
	if err := json.Unmarshal([]byte(stdout.String()), &verdicts); err != nil || status != 1 || len(verdicts) != 1 {
		t.Fatalf("status %d: %v\n%s%s", status, err, &stdout, &stderr)
	}
	v := verdicts[0]
	if v.Allowed || v.Issuer != "default" || v.Request.CommonName != "a.shop" || !strings.Contains(v.Event, "b.example.com is not allowed") {
		t.Errorf("%+v", v)
	}
	var denied []string
	for _, r := range v.Rules {
		if !r.Allowed {
			denied = append(denied, r.Rule)
		}
	}
	if strings.Join(denied, " ") != "policy.validations[0]" {
		t.Errorf("denied by %q\n%s", denied, &stdout)
	}
}

// docs/policy.md shows the output for its example.
func TestPolicyPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	block := func(begin string) string {
		_, text, found := strings.Cut(page, begin)
		text, _, closed := strings.Cut(text, "```\n")
		if !found || !closed {
			t.Fatalf("docs/policy.md has no block that begins with %q", begin)
		}
		return text
	}
	_, page, _ = strings.Cut(page, "\nYour list replaces the default policy")
	values := block("```yaml\n")
	_, page, _ = strings.Cut(page, "\n## Test a policy before you install it\n")
	line := strings.TrimSpace(block("```sh\nkubectl step-csi "))
	arguments := strings.Fields(strings.Replace(line, "values.yaml", "-", 1))
	var stdout, stderr strings.Builder
	run(t.Context(), arguments, strings.NewReader(values), &stdout, &stderr)
	if want := block("```text\n"); stdout.String() != want || stderr.Len() > 0 {
		t.Errorf("kubectl step-csi %s prints\n%s%s\nbut docs/policy.md has\n%s", line, &stdout, &stderr, want)
	}
}
