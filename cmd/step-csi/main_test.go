package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/ra/server"
)

const valid = `
driverName: csi.step-ca.io
clusterDomain: cluster.local
trustDomain: example.org
issuers:
  default:
    url: https://step-certificates.step-ca.svc.cluster.local
    fingerprint: 84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00
    provisioner: {type: jwk, name: admin, passwordFile: password}
    duration: {default: 12h, max: 24h, min: 5m}
policy:
  allowShortNames: true
  validations:
  - expression: request.dnsNames.size() < 10
    message: too many names
`

const nodePart = `
renewal: {minInterval: 5m}
limits: {volumesPerPod: 4, volumesPerNode: 100}
metrics: {perVolume: true}
`

func write(t *testing.T, config string) string {
	t.Helper()
	directory := t.TempDir()
	path := filepath.Join(directory, "step-csi.yaml")
	root, err := os.ReadFile("../../test/chart/testdata/root_ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"step-csi.yaml": config, "password": "secret\n", "empty": "\n", "rubbish.crt": "x", "root.crt": string(root),
	} {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestConfiguration(t *testing.T) {
	c, err := loadConfig(write(t, valid+nodePart), (*configFile).node)
	if err != nil {
		t.Fatal(err)
	}
	got := c.driverConfig(nodeOptions{kubeletDir: "/var/lib/kubelet", nodeName: "node-1", register: true}, nil)
	if got.Name != "csi.step-ca.io" || got.Socket != "/var/lib/kubelet/plugins/csi.step-ca.io/csi.sock" || got.TrustDomain.Name() != "example.org" ||
		!got.AllowShortNames || !got.Register || got.NodeName != "node-1" ||
		got.MinInterval != 5*time.Minute || got.VolumesPerPod != 4 || got.VolumesPerNode != 100 {
		t.Errorf("%+v", got)
	}
	if got, want := got.Issuers["default"].Lifetimes(), (issuer.Lifetimes{Default: 12 * time.Hour, Max: 24 * time.Hour, Min: 5 * time.Minute}); got != want {
		t.Errorf("lifetimes %+v", got)
	}
	if !got.MetricsPerVolume {
		t.Error("no metrics of each volume")
	}
}

func TestDefaults(t *testing.T) {
	c, err := loadConfig(write(t, `
clusterDomain: k8s.example.com
issuers:
  default:
    url: https://ca.example.com:9000/
    fingerprint: 84:A0:AC:1E:A9:FB:CC:5A:C5:AD:51:AF:0F:F5:A1:BF:02:BD:7D:7C:CD:5B:F8:B0:B8:CB:8B:6A:3D:1F:1F:00
    provisioner: {type: jwk, name: admin, passwordFile: password}
    duration: {max: 8h}
`), (*configFile).node)
	if err != nil {
		t.Fatal(err)
	}
	got := c.driverConfig(nodeOptions{}, nil)
	if got.Name != "csi.step-ca.io" || got.TrustDomain.Name() != "k8s.example.com" || got.AllowShortNames ||
		got.MinInterval != time.Minute || got.VolumesPerPod != 32 || got.VolumesPerNode != 0 || got.MetricsPerVolume {
		t.Errorf("%+v", got)
	}
	if got := got.Issuers["default"].Lifetimes(); got != (issuer.Lifetimes{Max: 8 * time.Hour}) {
		t.Errorf("lifetimes %+v; those that are not configured are the CA's", got)
	}
}

// The error for an invalid configuration names the file, the key and the reason.
func TestInvalidConfigurations(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"not YAML":              {"policy:", "policy: [", "yaml"},
		"unknown key":           {"trustDomain", "trustDomian", `"trustDomian"`},
		"unknown nested key":    {"fingerprint", "fingerprnt", `"issuers.default.fingerprnt"`},
		"wrong case":            {"clusterDomain", "clusterdomain", `"clusterdomain"`},
		"key twice":             {"policy:", "driverName: x\npolicy:", `"driverName" already`},
		"wrong type":            {"allowShortNames: true", "allowShortNames: perhaps", "policy.allowShortNames"},
		"unknown subject field": {"  allowShortNames: true", "  allowSubjectFields: [organization]", `policy: allowSubjectFields[0]: "organization" is not a subject field; these are: organizations, `},
		"driver name":           {"csi.step-ca.io", "Csi_Step", "driverName"},
		"cluster domain":        {"clusterDomain: cluster.local", "clusterDomain: cluster..local", "clusterDomain"},
		"trailing dot":          {"clusterDomain: cluster.local", "clusterDomain: cluster.local.", "clusterDomain"},
		"trust domain":          {"example.org", "spiffe://example.org", "trustDomain"},
		"no issuers":            {"issuers:\n  default:", "issuers: {}\nnothing:\n  default:", "nothing"},
		"http":                  {"https:", "http:", "issuers.default.url"},
		"no url":                {"url: https://step-certificates.step-ca.svc.cluster.local", "url: ''", "issuers.default.url"},
		"path":                  {"svc.cluster.local", "svc.cluster.local/1.0", "issuers.default.url: \"https://step-certificates.step-ca.svc.cluster.local/1.0\": leave out the path"},
		"url and urls":          {"    fingerprint", "    urls: [https://ca]\n    fingerprint", "issuers.default.urls: url is set, too"},
		"one wrong URL of two":  {"url: https://step-certificates.step-ca.svc.cluster.local", "urls: [https://ca, http://ca]", "issuers.default.urls: \"http://ca\": http is not possible"},
		"the same URL twice":    {"url: https://step-certificates.step-ca.svc.cluster.local", "urls: [https://ca, https://CA.:443/]", "issuers.default.urls: https://ca is in the list twice"},
		"serverTLS":             {"    fingerprint", "    serverTLS: public\n    fingerprint", `issuers.default.serverTLS: "public" is unknown; use system or bundle`},
		"no server bundle":      {"    fingerprint", "    serverTLS: bundle\n    fingerprint", "issuers.default.serverTLSBundleFile (in the chart: serverTLSBundle): name the file"},
		"unused server bundle":  {"    fingerprint", "    serverTLS: system\n    serverTLSBundleFile: rubbish.crt\n    fingerprint", "issuers.default.serverTLSBundleFile (in the chart: serverTLSBundle): is for serverTLS: bundle only"},
		"server bundle alone":   {"    fingerprint", "    serverTLSBundleFile: rubbish.crt\n    fingerprint", "issuers.default.serverTLSBundleFile (in the chart: serverTLSBundle): is for serverTLS: bundle only"},
		"missing server bundle": {"    fingerprint", "    serverTLS: bundle\n    serverTLSBundleFile: none.crt\n    fingerprint", "issuers.default.serverTLSBundleFile (in the chart: serverTLSBundle): open"},
		"bad server bundle":     {"    fingerprint", "    serverTLS: bundle\n    serverTLSBundleFile: rubbish.crt\n    fingerprint", "rubbish.crt: it has no certificate in PEM"},
		"empty server bundle":   {"    fingerprint", "    serverTLS: bundle\n    serverTLSBundleFile: empty\n    fingerprint", "empty is empty"},
		"host that is a number": {"step-certificates.step-ca.svc.cluster.local", "10.1", `"10.1" is neither a DNS name nor an IP address`},
		"no additional roots":   {"    provisioner", "    additionalRootsFile: none.crt\n    provisioner", "issuers.default.additionalRootsFile (in the chart: additionalRoots): stat "},
		"bad additional roots":  {"    provisioner", "    additionalRootsFile: rubbish.crt\n    provisioner", "rubbish.crt: it has no certificate in PEM"},
		"empty file of roots":   {"    provisioner", "    additionalRootsFile: empty\n    provisioner", "empty is empty"},
		"a directory of roots":  {"    provisioner", "    additionalRootsFile: .\n    provisioner", "is not a regular file"},
		"fingerprint":           {"84a0ac", "84a0", "issuers.default.fingerprint"},
		"bundle as well":        {"    provisioner", "    caBundleFile: root.crt\n    provisioner", "issuers.default.fingerprint: caBundleFile (in the chart: caBundle) is set, too"},
		"empty bundle":          {"    fingerprint: 84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00", "    caBundleFile: empty", "issuers.default.caBundleFile (in the chart: caBundle): "},
		"bundle without PEM":    {"    fingerprint: 84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00", "    caBundleFile: rubbish.crt", "rubbish.crt: it has no certificate in PEM; put the CA's root certificates there"},
		"neither of them":       {"    fingerprint: 84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00", "    # none", "issuers.default.fingerprint: set the fingerprint of the CA's root (step certificate fingerprint root_ca.crt), or caBundleFile (in the chart: caBundle)"},
		"no such bundle":        {"    provisioner", "    caBundleFile: none.crt\n    provisioner", "issuers.default.caBundleFile (in the chart: caBundle): open"},
		"provisioner type":      {"type: jwk", "type: acme", "issuers.default.provisioner.type"},
		"provisioner name":      {"name: admin, ", "", "issuers.default.provisioner.name"},
		"no password file":      {", passwordFile: password", "", "issuers.default.provisioner.passwordFile"},
		"no such password":      {"passwordFile: password", "passwordFile: none", "issuers.default.provisioner.passwordFile (in the chart: passwordSecret): open"},
		"empty password":        {"passwordFile: password", "passwordFile: empty", "is empty"},
		"no duration":           {"12h", "half a day", "issuers.default.duration.default"},
		"default over maximum":  {"12h", "25h", "issuers.default.duration.default"},
		"minimum over maximum":  {"min: 5m", "min: 30h", "issuers.default.duration.min"},
		"default under minimum": {"min: 5m", "min: 13h", "issuers.default.duration.default: 12h0m0s is shorter than duration.min, 13h0m0s"},
		"under a second":        {"min: 5m", "min: 5ms", "issuers.default.duration.min"},
		"renewal interval":      {"policy:", "renewal: {minInterval: 1d}\npolicy:", `renewal.minInterval: "1d" is not a duration`},
		"no volumes":            {"policy:", "limits: {volumesPerPod: 0}\npolicy:", "limits.volumesPerPod: 0 is below one"},
		"fewer than no volumes": {"policy:", "limits: {volumesPerNode: -1}\npolicy:", "limits.volumesPerNode: -1 is below zero"},
		"policy":                {"request.dnsNames.size() < 10", "request.dnsName.size() < 10", "undefined field 'dnsName'"},
	} {
		t.Run(name, func(t *testing.T) {
			config := strings.Replace(valid, test.old, test.new, 1)
			if config == valid {
				t.Fatal("the case changes nothing")
			}
			path := write(t, config)
			_, err := loadConfig(path, (*configFile).node)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want the file and %q", err, test.want)
			}
		})
	}
	if _, err := loadConfig("/nowhere/step-csi.yaml", (*configFile).node); err == nil || !strings.Contains(err.Error(), "/nowhere/step-csi.yaml") {
		t.Errorf("no file: %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for name, test := range map[string]struct {
		args                 []string
		err                  error
		stdout, stderr, text string
	}{
		"nothing":         {nil, errUsage, "", "Usage:", ""},
		"help":            {[]string{"--help"}, nil, "step-csi node", "", ""},
		"version":         {[]string{"version"}, nil, "step-csi ", "", ""},
		"unknown command": {[]string{"nodes"}, errUsage, "", `unknown command "nodes"`, ""},
		"reload":          {[]string{"reload", "--help"}, errUsage, "", "use step-csi-reload instead of step-csi reload\n", ""},
		"node help":       {[]string{"node", "--help"}, flag.ErrHelp, "--kubelet-dir", "", ""},
		"unknown flag":    {[]string{"node", "--socket=x"}, errUsage, "", "-socket", ""},
		"argument":        {[]string{"node", "x"}, errUsage, "", `unexpected argument "x"`, ""},
		"no file":         {[]string{"node", "--config", "/nowhere"}, os.ErrNotExist, "", "", "/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := run(t.Context(), test.args, &stdout, &stderr)
			if !errors.Is(err, test.err) || !strings.Contains(fmt.Sprint(err), test.text) {
				t.Errorf("error %v", err)
			}
			if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
			}
		})
	}
}

// The help lists all flags, and its example configuration is valid.
func TestHelp(t *testing.T) {
	for command, flags := range map[string][]string{
		"uninstall-check": {"driver-name", "plugin-namespace", "plugin-labels", "undo"},
		"node":            {"config", "check-config", "file-source", "node-name", "kubelet-dir", "csi-socket", "http-address", "kubelet-register", "logging-format", "v"},
		"ra":              {"config", "check-config", "file-source", "listen", "http-address", "logging-format", "v"},
		"verify":          {"certificate-file", "privatekey-file", "ca-file"},
	} {
		var help bytes.Buffer
		if err := run(t.Context(), []string{command, "--help"}, &help, &help); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", command, err)
		}
		for _, name := range flags {
			if !strings.Contains(help.String(), "  --"+name+" ") {
				t.Errorf("the help of %s lacks --%s", command, name)
			}
		}
	}
	_, example, _ := strings.Cut(nodeUsage, "where there are any:\n")
	example = strings.Replace(example, "84a0…  ", "84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00 ", 1)
	example = strings.Replace(example, "/etc/step-csi/password", "password", 1)
	if _, err := loadConfig(write(t, example), (*configFile).node); err != nil {
		t.Error(err)
	}
	_, more, _ := strings.Cut(raUsage, "It also has these keys:\n")
	more, _, _ = strings.Cut(more, "Its service account")
	indented := strings.ReplaceAll("\n"+more, "\n  ", "\n")
	example, _, _ = strings.Cut(example, "  renewal:\n") // and limits: for node plugins alone
	example = strings.ReplaceAll("\n"+example, "\n  ", "\n") + indented
	if _, err := loadConfig(write(t, example), (*configFile).ra); err != nil {
		t.Error(err)
	}
}

const authorityPart = `
authority:
  names: [step-csi-ra.step-ca.svc.cluster.local]
  plugin: step-ca/step-csi
  limits: {node: {rate: 5, burst: 50}}
`

func TestAuthorityConfiguration(t *testing.T) {
	c, err := loadConfig(write(t, valid+authorityPart), (*configFile).ra)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"renewal: {minInterval: 1m}", "limits: {volumesPerPod: 1}"} {
		name, _, _ := strings.Cut(key, " ")
		if _, err := loadConfig(write(t, valid+authorityPart+key), (*configFile).ra); err == nil || !strings.Contains(err.Error(), name+" is for step-csi node") {
			t.Errorf("%s: %v", key, err)
		}
	}
	got, err := c.serverConfig(nil, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	want := issuer.Lifetimes{Default: 12 * time.Hour, Min: 5 * time.Minute, Max: 24 * time.Hour}
	if got.Issuers["default"].Lifetimes() != want || got.Serving.Lifetimes != (issuer.Lifetimes{Max: 12 * time.Hour}) ||
		got.Plugin.String() != "step-ca/step-csi" || got.Limits.Node.Burst != 50 {
		t.Errorf("%+v", got)
	}
	// The policy denies every form of the registration authority's name.
	pod := issuer.Pod{Namespace: "step-ca", Name: "x-0", UID: "uid", ServiceAccount: "x", Node: "node-1"}
	for _, name := range []string{"step-csi-ra.step-ca.svc.cluster.local", "step-csi-ra.step-ca.svc", "step-csi-ra.step-ca", "*.step-ca.svc", "step-certificates.step-ca.svc.cluster.local"} {
		err := c.issuers["default"].allow(t.Context(), pod, issuer.Request{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, name))})
		if !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "reserved") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.issuers["default"].allow(t.Context(), pod, issuer.Request{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "x.step-ca.svc"))}); err != nil {
		t.Error(err)
	}
}

// The policy denies every form of the CA's name, whichever form the configuration
// uses.
func TestNamesOfTheCA(t *testing.T) {
	pod := issuer.Pod{Namespace: "step-ca", Name: "x-0", UID: "uid", ServiceAccount: "x", Node: "node-1"}
	other := pod
	other.Namespace = "shop"
	const url = "https://step-certificates.step-ca.svc.cluster.local"
	if !strings.Contains(valid, url) {
		t.Fatal("the CA has another URL")
	}
	for _, form := range []string{
		url, url + ":9000", url + ".", "https://Step-Certificates.step-ca.SVC.cluster.local",
		"https://ca.example.com\n    urls: [https://ca.example.com, 'https://Step-Certificates.step-ca.svc.:9000']",
		"https://step-certificates.step-ca.svc:9000", "https://step-certificates.step-ca.svc.", "https://step-certificates.step-ca",
	} {
		text := strings.Replace(valid, url, form, 1)
		if strings.Contains(form, "urls:") {
			text = strings.Replace(text, "    url: https://ca.example.com\n", "", 1)
		}
		c, err := loadConfig(write(t, text), (*configFile).node)
		if err != nil {
			t.Errorf("%s: %v", form, err)
			continue
		}
		config := attributes.Config{
			ClusterDomain: c.clusterDomain, TrustDomain: c.trustDomain, AllowShortNames: c.allowShortNames,
			Issuers: map[string]issuer.Lifetimes{"default": c.issuers["default"].lifetimes},
		}
		for _, attempt := range []struct {
			pod        issuer.Pod
			key, value string
		}{
			{pod, "service-names", "step-certificates"},
			{other, "service-names", "step-certificates"}, // by its short name
			{pod, "dns-names", "step-certificates.step-ca"},
			{pod, "dns-names", "STEP-Certificates.step-ca.svc"},
			{pod, "dns-names", "*.step-ca.svc.cluster.local"},
		} {
			a, err := attributes.Parse(map[string]string{attempt.key: attempt.value}, attempt.pod, "", config)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.issuers["default"].allow(t.Context(), attempt.pod, a.Request); !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "reserved") {
				t.Errorf("%s: %s in namespace %s: %v", form, attempt.value, attempt.pod.Namespace, err)
			}
		}
	}
}

// The policy denies the addresses and names by which pods reach the API server.
func TestNamesOfTheAPIServer(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "fd00:0::1")
	c, err := loadConfig(write(t, valid+authorityPart+"  kubernetes: {url: 'https://API.example.com.:6443', caFile: a, tokenFile: b}\n"), (*configFile).ra)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []issuer.Request{
		{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "api.example.com"))},
		{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "kubernetes.default"))},
		{IPAddresses: names.Must(names.ParseAll(names.ParseIP, "fd00::1"))},
	} {
		pod := issuer.Pod{Namespace: "default", Name: "x-0", UID: "uid", ServiceAccount: "x", Node: "node-1"}
		if err := c.issuers["default"].allow(t.Context(), pod, req); !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "reserved") {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

func TestInvalidAuthorities(t *testing.T) {
	for name, test := range map[string]struct{ old, new, want string }{
		"none":                {authorityPart, "", "authority: is missing"},
		"signs not by itself": {"type: jwk, name: admin, passwordFile: password", "type: ra, tokenFile: password", "issuers.default.provisioner.type"},
		"unknown issuer":      {"  plugin:", "  issuer: other\n  plugin:", "authority.issuer"},
		"unknown key":         {"  plugin:", "  plugins: x\n  plugin:", `"authority.plugins"`},
		"no plugin":           {"step-ca/step-csi", "step-csi", "authority.plugin"},
		"no names":            {"[step-csi-ra.step-ca.svc.cluster.local]", "[]", "names: the registration authority"},
		"a name that is none": {"[step-csi-ra.step-ca.svc.cluster.local]", "[step_ca.svc]", `authority.names: "step_ca.svc" is not a DNS name`},
		"a limit of nothing":  {"{rate: 5, burst: 50}", "{rate: -1, burst: 50}", "limits.node"},
		"half a Kubernetes":   {"  plugin:", "  kubernetes: {url: 'https://10.0.0.1'}\n  plugin:", "authority.kubernetes"},
		"no Kubernetes":       {"", "", "authority.kubernetes"},
		"metrics of volumes":  {authorityPart, authorityPart + "\nmetrics: {perVolume: true}\n", "metrics.perVolume: is for step-csi node"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, strings.Replace(valid+authorityPart, test.old, test.new, 1))
			c, err := loadConfig(path, (*configFile).ra)
			if err == nil {
				err = tryServer(c)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

// tryServer creates the registration authority's server without its connection to
// the API server.
func tryServer(c *config) error {
	checked, err := c.serverConfig(&server.TokenReview{}, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if _, err := server.New(checked); err != nil {
		return err
	}
	_, err = c.authority.Kubernetes.apiServer()
	return err
}

// An issuer of type ra has a token file and no password file.
func TestIssuerOfTypeRA(t *testing.T) {
	const jwk = "{type: jwk, name: admin, passwordFile: password}"
	for name, test := range map[string]struct{ provisioner, want string }{
		"fine":                {"{type: ra, tokenFile: password}", ""},
		"no token":            {"{type: ra}", "provisioner.tokenFile"},
		"no such token":       {"{type: ra, tokenFile: none}", "provisioner.tokenFile: open"},
		"password as well":    {"{type: ra, tokenFile: password, passwordFile: password}", "provisioner.passwordFile"},
		"unused token":        {"{type: jwk, name: admin, passwordFile: password, tokenFile: password}", "provisioner.tokenFile"},
		"policy at the node":  {"{type: ra, tokenFile: password}\n    policy: {validations: [{expression: 'true'}]}", "issuers.default.policy"},
		"fields at the node":  {"{type: ra, tokenFile: password}\n    policy: {allowSubjectFields: [organizations]}", "issuers.default.policy: the registration authority decides what a pod may have; move this policy"},
		"data at the node":    {"{type: ra, tokenFile: password}\n    policy: {allowTemplateData: true}", "issuers.default.policy"},
		"authority at a node": {"{type: ra, tokenFile: password}", "authority: is for step-csi ra"},

		"common fields at the node": {"{type: ra, tokenFile: password}", "policy: allowSubjectFields and allowTemplateData have no effect, because all issuers are at a registration authority"},
		"common data at the node":   {"{type: ra, tokenFile: password}", "policy: allowSubjectFields and allowTemplateData have no effect"},

		"several URLs":       {"{type: ra, tokenFile: password}\n    urls: [https://ca]", "issuers.default.urls: is for a CA"},
		"server's roots":     {"{type: ra, tokenFile: password}\n    serverTLS: system", "issuers.default.serverTLS: the registration authority calls the CA"},
		"pinned":             {"{type: ra, tokenFile: password}\n    roots: {pinned: true}", ""},
		"pinned, another CA": {"{type: ra, tokenFile: password}\n    roots: {pinned: true, fingerprint: 84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00}", ""},
		"pinned to nothing":  {"{type: ra, tokenFile: password}\n    roots: {pinned: true, caBundleFile: none}", "roots.caBundleFile (in the chart: caBundle): open"},
		"pinned to rubbish":  {"{type: ra, tokenFile: password}\n    roots: {pinned: true, fingerprint: x}", "roots.fingerprint: "},
		"pins, not pinned":   {"{type: ra, tokenFile: password}\n    roots: {caBundleFile: password}", "without roots.pinned: true"},
		"pins of a JWK":      {jwk + "\n    roots: {pinned: true, caBundleFile: password}", "are for the type ra only"},
	} {
		text := strings.Replace(valid, jwk, test.provisioner, 1)
		switch name {
		case "authority at a node":
			text += authorityPart
		case "common fields at the node":
			text = strings.Replace(text, "policy:\n  allow", "policy:\n  allowSubjectFields: [organizations]\n  allow", 1)
		case "common data at the node":
			text = strings.Replace(text, "policy:\n  allow", "policy:\n  allowTemplateData: true\n  allow", 1)
		}
		_, err := loadConfig(write(t, text), (*configFile).node)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want an error with %q", name, err, test.want)
		}
	}
}

// Each type of provisioner has its own files, and the error for a file of another type
// names both.
func TestFilesOfProvisioners(t *testing.T) {
	for name, test := range map[string]struct{ provisioner, want string }{
		"key":                       {"{type: jwk, name: a, keyFile: password}", ""},
		"encrypted key, and kid":    {"{type: jwk, name: a, kid: k, keyFile: password, passwordFile: password}", ""},
		"certificate":               {"{type: x5c, name: a, certificateFile: password, privateKeyFile: password, requireDisableRenewal: true}", ""},
		"nothing":                   {"{type: jwk, name: a}", "issuers.default.provisioner.passwordFile (in the chart: passwordSecret): name the file with the password of the provisioner's key; or provisioner.keyFile (in the chart: keySecret), if"},
		"no such key":               {"{type: jwk, name: a, keyFile: none}", "issuers.default.provisioner.keyFile (in the chart: keySecret): open"},
		"empty key":                 {"{type: jwk, name: a, keyFile: empty}", "issuers.default.provisioner.keyFile (in the chart: keySecret): "},
		"no certificate":            {"{type: x5c, name: a, privateKeyFile: password}", "issuers.default.provisioner.certificateFile (in the chart: certificateSecret): name the file"},
		"no private key":            {"{type: x5c, name: a, certificateFile: password}", "issuers.default.provisioner.privateKeyFile (in the chart: certificateSecret): name the file"},
		"no such certificate":       {"{type: x5c, name: a, certificateFile: none, privateKeyFile: password}", "issuers.default.provisioner.certificateFile (in the chart: certificateSecret): open"},
		"X5C without a name":        {"{type: x5c, certificateFile: password, privateKeyFile: password}", "issuers.default.provisioner.name"},
		"password of a certificate": {"{type: x5c, name: a, certificateFile: password, privateKeyFile: password, passwordFile: password}", "issuers.default.provisioner.passwordFile (in the chart: passwordSecret): is for the type jwk only"},
		"kid of a certificate":      {"{type: x5c, name: a, kid: k, certificateFile: password, privateKeyFile: password}", "issuers.default.provisioner.kid: is for the type jwk only"},
		"certificate of a JWK":      {"{type: jwk, name: a, passwordFile: password, certificateFile: password}", "issuers.default.provisioner.certificateFile (in the chart: certificateSecret): is for the type x5c only"},
		"key at a node":             {"{type: ra, tokenFile: password, keyFile: password}", "issuers.default.provisioner.keyFile (in the chart: keySecret): is for the type jwk only; no node needs it any more"},
		"token of a certificate":    {"{type: x5c, name: a, certificateFile: password, privateKeyFile: password, tokenFile: password}", "issuers.default.provisioner.tokenFile: is for the type ra only"},
		"unknown type":              {"{type: X5C, name: a}", `issuers.default.provisioner.type: "X5C" is unknown; use jwk, x5c or ra`},
	} {
		text := strings.Replace(valid, "{type: jwk, name: admin, passwordFile: password}", test.provisioner, 1)
		for program, load := range map[string]func() error{
			"node": func() error { _, err := loadConfig(write(t, text), (*configFile).node); return err },
			"ra":   func() error { _, err := loadConfig(write(t, text+authorityPart), (*configFile).ra); return err },
		} {
			err := load()
			if name == "key at a node" && program == "ra" {
				continue // which has no issuer of the type ra
			}
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%s, %s: got %v, want an error with %q", name, program, err, test.want)
			}
		}
	}
}

// An issuer's own validations replace the common ones.
func TestPolicyOfAnIssuer(t *testing.T) {
	second := strings.Replace(valid, "issuers:\n", `issuers:
  open:
    url: https://other.example.com
    fingerprint: 84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00
    provisioner: {type: jwk, name: admin, passwordFile: password}
    policy: {validations: [{expression: "request.issuer == 'open'"}]}
`, 1)
	c, err := loadConfig(write(t, second), (*configFile).node)
	if err != nil {
		t.Fatal(err)
	}
	pod := issuer.Pod{Namespace: "shop", Name: "x-0", UID: "uid", ServiceAccount: "x", Node: "node-1"}
	req := issuer.Request{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, strings.Fields(strings.Repeat("www.example.org ", 10))...))}
	if err := c.issuers["open"].allow(t.Context(), pod, req); err != nil {
		t.Error(err)
	}
	if err := c.issuers["default"].allow(t.Context(), pod, req); !errors.Is(err, issuer.Denied) {
		t.Errorf("default: %v", err)
	}
	if _, err := loadConfig(write(t, strings.Replace(second, "== 'open'", "= 1", 1)), (*configFile).node); err == nil ||
		!strings.Contains(err.Error(), "issuers.open.policy: ") || !strings.Contains(err.Error(), "validations[0].expression:1") {
		t.Errorf("got %v", err)
	}
}

// Subject fields and template data are allowed by the policy whose validations decide about
// them: an issuer with a policy of its own inherits neither from the common one.
func TestSubjectsOfAnIssuer(t *testing.T) {
	const mayHaveO, mayHaveData = "O", "data"
	pod := issuer.Pod{Namespace: "shop", Name: "x-0", UID: "uid", ServiceAccount: "x", Node: "node-1"}
	plain := issuer.Request{DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "x.shop"))}
	withO, withData := plain, plain
	withO.Subject.Organizations = names.Must(names.ParseAll(names.ParseOrganization, "shop"))
	withData.TemplateData = names.Must(issuer.ParseTemplateData("{}"))
	const anyO, anyData = "{expression: request.organizations.size() < 9}", "{expression: request.templateData.size() < 9}"
	const both = ", validations: [" + anyO + ", " + anyData + "]"
	for _, test := range []struct{ common, own, want string }{
		{"", "", ""},
		{"allowSubjectFields: [organizations]" + both, "", mayHaveO},
		{"allowTemplateData: true" + both, "", mayHaveData},
		{"allowSubjectFields: [organizations], allowTemplateData: true" + both, "", mayHaveO + mayHaveData},
		{"allowSubjectFields: [], allowTemplateData: false" + both, "", ""},
		{"", "allowSubjectFields: [organizations]" + both, mayHaveO},
		{"", "allowTemplateData: true" + both, mayHaveData},
		{"allowTemplateData: true" + both, "allowSubjectFields: [organizations]", mayHaveO},
		{"allowSubjectFields: [organizations], allowTemplateData: true" + both, "validations: [{expression: 'true'}]", ""},
		// Without validations of its own, those of the common policy decide.
		{"validations: [{expression: 'request.organizations.size() == 0'}]", "allowSubjectFields: [organizations]", ""},
		{"validations: [{expression: 'false'}]", "allowSubjectFields: [organizations]" + both, mayHaveO},
	} {
		text := strings.Replace(valid, "    duration:", "    policy: {"+test.own+"}\n    duration:", 1)
		before, _, _ := strings.Cut(text, "policy:\n  allowShortNames")
		c, err := loadConfig(write(t, before+"policy: {"+test.common+"}\n"), (*configFile).node)
		if err != nil {
			t.Fatalf("%+v: %v", test, err)
		}
		got := ""
		if c.issuers["default"].allow(t.Context(), pod, withO) == nil {
			got += mayHaveO
		}
		if c.issuers["default"].allow(t.Context(), pod, withData) == nil {
			got += mayHaveData
		}
		if got != test.want {
			t.Errorf("common {%s}, own {%s}: the pod may have %q, want %q", test.common, test.own, got, test.want)
		}
	}
}

// The configurations in the documentation are valid, its policy allows and denies
// what the text says, and it describes every attribute.
func TestDocumentation(t *testing.T) {
	page := func(name string) string {
		t.Helper()
		text, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	block := func(name, beginning string) string {
		t.Helper()
		_, rest, found := strings.Cut(page(name), "```yaml\n"+beginning)
		text, _, closed := strings.Cut(rest, "```")
		if !found || !closed {
			t.Fatalf("%s has no block that begins with %q", name, beginning)
		}
		return beginning + text
	}
	config := strings.NewReplacer("84a0… ", "84a0ac1ea9fbcc5ac5ad51af0ff5a1bf02bd7d7ccd5bf8b0b8cb8b6a3d1f1f00 ", "/etc/step-csi/password", "password").
		Replace(block("configuration.md", "driverName:"))
	if _, err := loadConfig(write(t, config), (*configFile).node); err != nil {
		t.Error(err)
	}
	shared, _, _ := strings.Cut(config, "renewal:\n") // and limits: for node plugins alone
	if _, err := loadConfig(write(t, shared+block("configuration.md", "authority:")), (*configFile).ra); err != nil {
		t.Error(err)
	}
	own := block("policy.md", "policy:")
	file, err := parseConfigFile([]byte(own))
	if err != nil {
		t.Fatal(err)
	}
	clusterDomain, trustDomain := names.Must(names.ParseClusterDomain("cluster.local")), names.Must(names.ParseTrustDomain("cluster.local"))
	p, err := policy.New(policy.Config{
		ClusterDomain: clusterDomain, TrustDomain: trustDomain, Validations: file.Policy.Validations,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		namespace, attribute, names string
		allowed                     bool
	}{
		{"shop", "service-names", "web", true},
		{"shop", "dns-names", "www.example.com", false},
		{"edge", "dns-names", "www.example.com", true},
		{"edge", "dns-names", "web.shop.svc", false},
		{"edge", "ip-sans", "10.0.0.1", false},
	} {
		pod := issuer.Pod{Namespace: test.namespace, Name: "web-0", UID: "uid-0", ServiceAccount: "web", Node: "node-1"}
		a, err := attributes.Parse(map[string]string{test.attribute: test.names}, pod, "", attributes.Config{
			ClusterDomain: clusterDomain, TrustDomain: trustDomain,
			Issuers: map[string]issuer.Lifetimes{"default": {Default: time.Hour, Min: time.Hour, Max: time.Hour}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Check(t.Context(), pod, a.Request); (err == nil) != test.allowed {
			t.Errorf("%+v: %v", test, err)
		}
	}
	for _, key := range attributes.Keys() {
		if !strings.Contains(page("volume-attributes.md"), "\n| `"+key+"` |") {
			t.Errorf("docs/volume-attributes.md does not describe the attribute %s", key)
		}
	}
}

// The examples of subject fields do what the pages say. That of subject.md is a whole policy, and
// the other is added to the default policy.
func TestDocumentationOfSubjects(t *testing.T) {
	const beginning, end = "```yaml\npolicy:\n  allowSubjectFields:", "```"
	var blocks []string
	for _, name := range []string{"policy.md", "subject.md"} {
		page, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, block, _ := strings.Cut(string(page), beginning)
		block, _, _ = strings.Cut(block, end)
		blocks = append(blocks, block)
	}
	for i, block := range blocks {
		before := [][]policy.Validation{policy.Default(), nil}[i]
		file, err := parseConfigFile([]byte(strings.TrimPrefix(beginning, "```yaml\n") + block))
		if err != nil {
			t.Fatal(err)
		}
		p, err := policy.New(policy.Config{
			ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")),
			AllowSubjectFields: file.Policy.AllowSubjectFields, AllowTemplateData: file.Policy.AllowTemplateData,
			Validations: append(before, file.Policy.Validations...),
		})
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 && len(policy.Unrestricted(file.Policy.Validations)) > 0 {
			t.Errorf("subject.md: the example does not restrict %q", policy.Unrestricted(file.Policy.Validations))
		}
		for _, test := range []struct {
			organizations, units, dns string
			allowed                   bool
		}{
			{"shop", "", "web.shop.svc.cluster.local", true},
			{"shop", "", "api.example.com", false},
			{"shop", "", "web.pay.svc", false},
			{"pay", "", "web.shop", false},
			{"shop,pay", "", "web.shop", false},
			{"shop", "backend", "web.shop.svc", i == 1},
			{"shop", "backend,other", "web.shop", false},
		} {
			values := map[string]string{"service-names": "web", "dns-names": test.dns, "organizations": test.organizations}
			if test.units != "" {
				values["organizational-units"] = test.units
			}
			pod := issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid-0", ServiceAccount: "web", Node: "node-1"}
			a, err := attributes.Parse(values, pod, "", attributes.Config{
				ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")),
				Issuers: map[string]issuer.Lifetimes{"default": {}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Check(t.Context(), pod, a.Request); (err == nil) != test.allowed {
				t.Errorf("%+v: %v", test, err)
			}
		}
	}
}

// People write the kubelet's directory with and without a slash at the end.
func TestKubeletDirWithASlash(t *testing.T) {
	o, err := parseNodeOptions([]string{"--kubelet-dir=/var/lib/kubelet/"}, io.Discard, io.Discard)
	if err != nil || o.kubeletDir != "/var/lib/kubelet" {
		t.Errorf("the kubelet's directory is %q: %v", o.kubeletDir, err)
	}
}
