package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// check runs a command with --check-config and returns what it prints.
func check(t *testing.T, command, path string, args ...string) (string, error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	err := run(t.Context(), append([]string{command, "--check-config", "--config", path}, args...), &stdout, &stderr)
	if stderr.Len() > 0 {
		t.Errorf("on standard error: %s", &stderr)
	}
	return stdout.String(), err
}

// The check prints what the configuration says: a reader sees a wrong URL, issuer or policy.
// It ends, and so neither waits for the CA nor serves anything.
func TestCheckConfig(t *testing.T) {
	const jwk = "{type: jwk, name: admin, passwordFile: password}"
	common, _, _ := strings.Cut(valid, "  validations:")
	for name, test := range map[string]struct {
		command, config string
		want            []string
	}{
		"node": {"node", valid + nodePart, []string{
			"driver csi.step-ca.io, cluster domain cluster.local, trust domain example.org",
			`issuer default: JWK provisioner "admin" at https://step-certificates.step-ca.svc.cluster.local; the common policy (validations: 1)`,
		}},
		"node, mode ra": {"node", strings.Replace(valid, jwk, "{type: ra, tokenFile: password}", 1), []string{
			"issuer default: the registration authority at https://step-certificates.step-ca.svc.cluster.local, which has the policy",
		}},
		"ra": {"ra", valid + authorityPart, []string{
			`issuer default: JWK provisioner "admin"`,
			"registration authority: its certificate is from the issuer default; its callers are the node plugins of the service account step-ca/step-csi",
		}},
		"default policy": {"node", common, []string{"; the default policy\n"}},
		"own policy":     {"node", strings.Replace(valid, "    duration:", "    policy: {validations: [{expression: 'true', message: m}]}\n    duration:", 1), []string{"a policy of its own (validations: 1)"}},
		"more roots": {"node", strings.Replace(valid, "    duration:", "    additionalRootsFile: root.crt\n    publicRoots: true\n    duration:", 1), []string{
			"; additional roots from root.crt; public roots: servers that verify clients by ca.crt accept certificates of every public CA\n",
		}},
		"subject fields": {"node", strings.Replace(common, "  allowShortNames: true", "  allowSubjectFields: [organizations, countries]\n  allowTemplateData: true\n"+
			"  validations: [{expression: request.organizations.size() + request.countries.size() + request.templateData.size() < 9}]", 1),
			[]string{"; the common policy (validations: 1; subject fields: organizations, countries; template data); warning: no validation mentions request.commonName, request.dnsNames, request.ipAddresses, request.uris, request.emailAddresses, so any pod can have any value\n"}},
		"own subject fields": {"node", strings.Replace(strings.Replace(valid, "request.dnsNames", "request.countries", 1), "    duration:", "    policy: {allowSubjectFields: [countries]}\n    duration:", 1),
			[]string{"; a policy of its own (validations: 1; subject fields: countries); warning: no validation mentions "}},
		"several URLs": {"node", strings.Replace(valid, "url: https://step-certificates.step-ca.svc.cluster.local", "urls: [https://a, https://b]", 1), []string{
			"at https://a, https://b;",
		}},
	} {
		path := write(t, test.config)
		got, err := check(t, test.command, path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.HasPrefix(got, path+": ok\n") {
			t.Errorf("%s: %s", name, got)
		}
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: the output lacks %q:\n%s", name, want, got)
			}
		}
	}
}

// The check of a registration authority finds what only its server checks.
func TestCheckConfigOfTheAuthority(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"no plugin":          {"step-ca/step-csi", "step-csi", "authority.plugin"},
		"no names":           {"[step-csi-ra.step-ca.svc.cluster.local]", "[]", "authority.names"},
		"a limit of nothing": {"{rate: 5, burst: 50}", "{rate: -1, burst: 50}", "authority.limits.node"},
		"half a Kubernetes":  {"  plugin:", "  kubernetes: {url: 'https://10.0.0.1'}\n  plugin:", "authority.kubernetes"},
		"no CA of it":        {"  plugin:", "  kubernetes: {url: 'https://10.0.0.1', caFile: /nowhere/ca.crt, tokenFile: /nowhere/token}\n  plugin:", "/nowhere/ca.crt"},
	} {
		path := write(t, strings.Replace(valid+authorityPart, test.old, test.new, 1))
		if got, err := check(t, "ra", path); err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), test.want) || got != "" {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
}

const twoIssuers = `
issuers:
  a: {url: https://ca, caBundleFile: none.crt, provisioner: {type: jwk, name: admin, passwordFile: none, keyFile: gone}}
  b: {url: https://ca, caBundleFile: empty, provisioner: {type: jwk, name: admin, passwordFile: password}}
  c: {url: https://ca, caBundleFile: root.crt, provisioner: {type: jwk, name: admin, passwordFile: password}, policy: {validations: [{expression: '1', message: m}]}}
  d: {url: https://ca, caBundleFile: root.crt, provisioner: {type: jwk, name: admin, passwordFile: password}}
policy: {validations: [{expression: 'nothing', message: m}]}
limits: {volumesPerPod: 0}
`

// An administrator who has made several mistakes reads them all at once, in a fixed order.
func TestEveryMistakeIsReported(t *testing.T) {
	path := write(t, twoIssuers)
	_, err := check(t, "node", path)
	if err == nil {
		t.Fatal("the configuration is accepted")
	}
	last := -1
	for _, want := range []string{path + ": policy: ", "issuers.a.caBundleFile (in the chart: caBundle): open", "issuers.a.provisioner.passwordFile (in the chart: passwordSecret): open", "issuers.a.provisioner.keyFile (in the chart: keySecret): open", "issuers.b.caBundleFile (in the chart: caBundle): ", "issuers.c.policy: ", "limits.volumesPerPod: "} {
		at := strings.Index(err.Error(), want)
		if at <= last {
			t.Errorf("the error lacks %q after the others:\n%v", want, err)
		}
		last = at
	}
	if strings.Contains(err.Error(), "issuers.d") {
		t.Errorf("the policy of all is reported for an issuer, too:\n%v", err)
	}
}

// A message about a file names the Secret or the ConfigMap that it comes from.
func TestFileSources(t *testing.T) {
	sources := []string{
		"--file-source=none.crt=key root_ca.crt of the ConfigMap a", "--file-source=empty=key k=v of the Secret b",
		"--file-source=password=Secret of the password", "--file-source=gon=another file",
	}
	path := write(t, twoIssuers)
	_, err := check(t, "node", path, sources...)
	if err == nil {
		t.Fatal("the configuration is accepted")
	}
	directory := filepath.Dir(path)
	for _, want := range []string{
		"issuers.a.caBundleFile (in the chart: caBundle): open " + directory + "/none.crt: no such file or directory: there is no key root_ca.crt of the ConfigMap a\n",
		"issuers.b.caBundleFile (in the chart: caBundle): " + directory + "/empty is empty: the file is the key k=v of the Secret b\n",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "Secret of the password") || strings.Contains(err.Error(), "another file") {
		t.Errorf("the error has the source of a file that it is not about:\n%v", err)
	}
	for _, wrong := range []string{"x", "=x", "x="} {
		var stdout, stderr bytes.Buffer
		if err := run(t.Context(), []string{"node", "--file-source=" + wrong}, &stdout, &stderr); !errors.Is(err, errUsage) || !strings.Contains(stderr.String(), "write PATH=TEXT") {
			t.Errorf("%s: %v\n%s", wrong, err, &stderr)
		}
	}
}

// The password is never printed.
func TestCheckConfigKeepsSecrets(t *testing.T) {
	path := write(t, valid)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "password"), []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := check(t, "node", path); err != nil || strings.Contains(got, "hunter2") {
		t.Errorf("%v: %s", err, got)
	}
}
