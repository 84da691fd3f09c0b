package chart

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
)

// With the chart's files, the plugin fails only at the kubelet's directory, and the
// authority only at its listener. So both accept their configurations and find their
// files.
func TestConfigurationsAreAccepted(t *testing.T) {
	for _, file := range append(valueFiles(t), os.DevNull) {
		for _, mode := range []string{"ra", "node"} {
			t.Run(filepath.Base(file)+"/"+mode, func(t *testing.T) {
				t.Parallel()
				objects := render(t, "--values", file, "--set", "mode="+mode)
				if err := startPlugin(pluginFiles(t, objects)); !refusedForTheDirectory(err) {
					t.Error(err)
				}
				if mode == "node" {
					return
				}
				if err := startAuthority(authorityFiles(t, objects)); !refusedForTheAddress(err) {
					t.Error(err)
				}
			})
		}
	}
}

// The plugin and the authority reject a configuration with a missing file. So the test
// above fails for an incomplete configuration.
func TestIncompleteConfigurationsAreRefused(t *testing.T) {
	for _, c := range []struct {
		mode  string
		files func(*testing.T, map[string]object) string
		start func(directory string) error
		needs []string
	}{
		{"node", pluginFiles, startPlugin, []string{"step-csi.yaml", "issuers/default/password", "issuers/default/ca.crt"}},
		{"ra", pluginFiles, startPlugin, []string{"step-csi.yaml", "token", "issuers/default/ca.crt"}},
		{"ra", authorityFiles, startAuthority, []string{"step-csi.yaml", "issuers/default/password", "issuers/default/ca.crt"}},
	} {
		for _, file := range c.needs {
			directory := c.files(t, render(t, "--set", "mode="+c.mode))
			if err := os.Remove(filepath.Join(directory, file)); err != nil {
				t.Fatal(err)
			}
			if err := c.start(directory); err == nil || !strings.Contains(err.Error(), filepath.Join(directory, file)) {
				t.Errorf("mode %s without %s: %v", c.mode, file, err)
			}
		}
	}
}

func refusedForTheDirectory(err error) bool {
	return err != nil && strings.Contains(err.Error(), "kubelet's directory")
}

func refusedForTheAddress(err error) bool {
	return err != nil && strings.Contains(err.Error(), "step-csi: --listen nowhere:")
}

// startPlugin returns why the plugin did not start.
func startPlugin(directory string) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	_, err := command(".", stepCSI, "node", "--node-name=node",
		"--config="+filepath.Join(directory, "step-csi.yaml"), "--kubelet-dir="+filepath.Join(directory, "none"))
	return err
}

// startAuthority returns why the authority did not start.
func startAuthority(directory string) error {
	_, err := command(".", stepCSI, "ra", "--config="+filepath.Join(directory, "step-csi.yaml"), "--listen=nowhere")
	return err
}

func pluginFiles(t *testing.T, objects map[string]object) string {
	t.Helper()
	return configFiles(t, objects, "DaemonSet")
}

func authorityFiles(t *testing.T, objects map[string]object) string {
	t.Helper()
	directory := configFiles(t, objects, "ra/Deployment")
	// Outside a cluster, the environment does not have the API server's address.
	var own object
	if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(directory, "step-csi.yaml"))), &own); err != nil {
		t.Fatal(err)
	}
	file, err := filepath.Abs("testdata/root_ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	at(own, "authority").(object)["kubernetes"] = object{"url": "https://127.0.0.1:6443", "caFile": file, "tokenFile": file}
	data, err := yaml.Marshal(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, "step-csi.yaml"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return directory
}

// configFiles makes the files of the workload's volume "config" like the kubelet. Other
// files than the configuration get sample contents.
func configFiles(t *testing.T, objects map[string]object, workload string) string {
	t.Helper()
	directory := t.TempDir()
	for _, source := range configSources(objects[workload]) {
		for _, item := range items(source) {
			path := filepath.Join(directory, item.path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			content := "secret\n"
			switch filepath.Base(path) {
			case "step-csi.yaml":
				content = configContent(t, objects, workload, source)
			case "ca.crt", "server.crt", "additional.crt":
				content = read(t, "testdata/root_ca.crt")
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return directory
}

// configContent returns the configuration file of a workload: an annotation of its pods with
// Helm, and a ConfigMap with kustomize.
func configContent(t *testing.T, objects map[string]object, workload string, source any) string {
	t.Helper()
	if at(source, "downwardAPI") != nil {
		return configAnnotation(t, objects[workload])
	}
	configMap := objects[strings.TrimSuffix(workload, filepath.Base(workload))+"ConfigMap"]
	if at(configMap, "metadata", "name") != at(source, "configMap", "name") {
		t.Fatalf("the volume of the %s refers to a ConfigMap that is not generated", workload)
	}
	return at(configMap, "data", "step-csi.yaml").(string)
}

// configAnnotation returns the annotation of the workload's pods with their configuration.
func configAnnotation(t *testing.T, workload object) string {
	t.Helper()
	text, ok := at(workload, "spec", "template", "metadata", "annotations", "step-csi.io/config").(string)
	if !ok {
		t.Fatal("the pods have no annotation step-csi.io/config")
	}
	return text
}

func configSources(workload object) []any {
	volumes, _ := at(workload, "spec", "template", "spec", "volumes").([]any)
	for _, v := range volumes {
		if at(v, "name") == "config" {
			return at(v, "projected", "sources").([]any)
		}
	}
	return nil
}

type item struct{ key, path string }

func items(source any) []item {
	var all []item
	for _, kind := range []string{"configMap", "secret"} {
		list, _ := at(source, kind, "items").([]any)
		for _, i := range list {
			all = append(all, item{at(i, "key").(string), at(i, "path").(string)})
		}
	}
	if path, ok := at(source, "serviceAccountToken", "path").(string); ok {
		all = append(all, item{"", path})
	}
	files, _ := at(source, "downwardAPI", "items").([]any)
	for _, file := range files {
		all = append(all, item{"", at(file, "path").(string)})
	}
	return all
}

func TestDefaultPolicyIsThePluginsOwn(t *testing.T) {
	var values struct {
		Policy struct{ Validations []policy.Validation }
	}
	if err := yaml.Unmarshal([]byte(read(t, chart+"/values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	want := policy.Default()
	for i := range want {
		want[i].Expression, want[i].MessageExpression = tidy(want[i].Expression), tidy(want[i].MessageExpression)
	}
	got := values.Policy.Validations
	for i := range got {
		got[i].Expression, got[i].MessageExpression = tidy(got[i].Expression), tidy(got[i].MessageExpression)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("values.yaml has the policy\n%+v\nbut the plugin's default is\n%+v", got, want)
	}
}

// docs/policy.md lists the namespaces that get no names with two labels.
func TestDomainsAreDocumented(t *testing.T) {
	if list := "`" + strings.Join(names.Domains(), "`, `") + "`"; !strings.Contains(read(t, root+"/docs/policy.md"), list) {
		t.Errorf("docs/policy.md does not have the list %s", list)
	}
}

// tidy removes line breaks and indentation.
func tidy(cel string) string { return strings.Join(strings.Fields(cel), " ") }

// With an empty list, the program uses its own default policy.
func TestEmptyPolicyIsAccepted(t *testing.T) {
	empty := []string{"--set-json", "policy.validations=[]"}
	if err := startAuthority(authorityFiles(t, render(t, empty...))); !refusedForTheAddress(err) {
		t.Error(err)
	}
	if err := startPlugin(pluginFiles(t, render(t, append(empty, "--set", "mode=node")...))); !refusedForTheDirectory(err) {
		t.Error(err)
	}
}

// The two configurations and the objects fit together. The plugin calls the authority
// by one of its names and at its port, requests only its issuers, and trusts the right
// root. The authority accepts the plugin's service account.
func TestPluginAndAuthorityFit(t *testing.T) {
	for _, file := range append(valueFiles(t), os.DevNull, "testdata/no-default.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			objects := render(t, "--values", file, "--set", "mode=ra")
			asks, answers := config(t, objects["DaemonSet"]), config(t, objects["ra/Deployment"])
			for _, key := range []string{"clusterDomain", "trustDomain"} {
				if at(asks, key) != at(answers, key) {
					t.Errorf("%s is %v for the plugin and %v for the authority", key, at(asks, key), at(answers, key))
				}
			}
			if at(asks, "policy", "allowShortNames") != at(answers, "policy", "allowShortNames") || at(asks, "policy", "validations") != nil {
				t.Errorf("the plugin's policy is %v", at(asks, "policy"))
			}
			name := at(answers, "authority", "names").([]any)[0].(string)
			if want := fmt.Sprintf("%s.step-ca.svc.%s", at(objects["ra/Service"], "metadata", "name"), at(answers, "clusterDomain")); name != want {
				t.Errorf("the authority's name is %s, want %s", name, want)
			}
			port := at(objects["ra/Service"], "spec", "ports").([]any)[0].(object)["port"]
			container := at(objects["ra/Deployment"], "spec", "template", "spec", "containers").([]any)[0]
			if listens := at(container, "ports").([]any)[0].(object)["containerPort"]; listens != port || !slices.Contains(at(container, "args").([]any), any(fmt.Sprintf("--listen=:%v", port))) {
				t.Errorf("the Service has the port %v, but the container has %v and %v", port, listens, at(container, "args"))
			}
			signs := at(answers, "authority", "issuer").(string)
			if at(answers, "issuers", signs) == nil {
				t.Errorf("the authority has no issuer %s", signs)
			}
			if account := fmt.Sprintf("step-ca/%s", at(objects["DaemonSet"], "spec", "template", "spec", "serviceAccountName")); at(answers, "authority", "plugin") != account {
				t.Errorf("the authority accepts the service account %v, but the plugin has %s", at(answers, "authority", "plugin"), account)
			}
			if !reflect.DeepEqual(keys(at(asks, "issuers")), keys(at(answers, "issuers"))) {
				t.Errorf("the plugin has the issuers %v, but the authority has %v", keys(at(asks, "issuers")), keys(at(answers, "issuers")))
			}
			for issuer, own := range at(asks, "issuers").(object) {
				if want := (object{"type": "ra", "name": issuer, "tokenFile": "token"}); !reflect.DeepEqual(at(own, "provisioner"), want) {
					t.Errorf("%s: %v", issuer, at(own, "provisioner"))
				}
				if at(own, "url") != fmt.Sprintf("https://%s:%v", name, port) {
					t.Errorf("%s: the plugin calls %s", issuer, at(own, "url"))
				}
				for _, key := range []string{"fingerprint", "caBundleFile"} {
					if at(own, key) != at(answers, "issuers", signs, key) {
						t.Errorf("%s: the plugin's %s is %v, but the CA that signs the authority's certificate has %v", issuer, key, at(own, key), at(answers, "issuers", signs, key))
					}
				}
				if !reflect.DeepEqual(at(own, "duration"), at(answers, "issuers", issuer, "duration")) {
					t.Errorf("%s: the plugin's lifetimes differ from the authority's", issuer)
				}
			}
		})
	}
}

// Lifetimes are the CA's, unless the values set them.
func TestLifetimesAreTheCAs(t *testing.T) {
	for _, kind := range []string{"DaemonSet", "ra/Deployment"} {
		if got := at(config(t, render(t)[kind]), "issuers", "default", "duration"); got != nil {
			t.Errorf("%s: by default %v", kind, got)
		}
		got := at(config(t, render(t, "--set", "issuers.default.duration.max=8h")[kind]), "issuers", "default", "duration")
		if want := (object{"max": "8h"}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}

// config returns the configuration of a workload of the chart.
func config(t *testing.T, workload object) object {
	t.Helper()
	var c object
	if err := yaml.UnmarshalStrict([]byte(configAnnotation(t, workload)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func keys(o any) []string { return slices.Sorted(maps.Keys(o.(object))) }

// An issuer's own policy is in the configuration of the program that calls the CA.
func TestPolicyOfAnIssuer(t *testing.T) {
	own := []string{"--set-json", `issuers.default.policy.validations=[{"expression":"false","message":"nobody"}]`}
	want := []any{object{"expression": "false", "message": "nobody"}}
	for mode, kind := range map[string]string{"ra": "ra/Deployment", "node": "DaemonSet"} {
		objects := render(t, append(own, "--set", "mode="+mode)...)
		if got := at(config(t, objects[kind]), "issuers", "default", "policy", "validations"); !reflect.DeepEqual(got, want) {
			t.Errorf("mode %s: %v", mode, got)
		}
	}
	if got := at(config(t, render(t, own...)["DaemonSet"]), "issuers", "default", "policy"); got != nil {
		t.Errorf("in mode ra, the plugin has the policy %v", got)
	}
}

// With roots.pinned, every program that gets roots pins them. In mode ra, the node plugin
// has the roots of the issuer's own CA for that, also if another CA signs the authority's
// certificate.
func TestPinnedRoots(t *testing.T) {
	const edge = "../../deploy/examples/values/two-issuers.yaml"
	pinned := func(own ...string) []string {
		return append([]string{"--values", edge, "--set", "issuers.default.roots.pinned=true,issuers.edge.roots.pinned=true"}, own...)
	}
	for name, test := range map[string]struct {
		values []string
		kind   string
		want   map[string]object
	}{
		"plugin in mode node": {pinned("--set", "mode=node"), "DaemonSet", map[string]object{
			"default": {"refresh": "5m", "federation": false, "pinned": true}, "edge": {"pinned": true},
		}},
		"authority": {pinned(), "ra/Deployment", map[string]object{
			"default": {"federation": false, "pinned": true}, "edge": {"pinned": true},
		}},
		"plugin": {pinned(), "DaemonSet", map[string]object{
			"default": {"refresh": "5m", "pinned": true}, "edge": {"pinned": true, "caBundleFile": "issuers/edge/ca.crt"},
		}},
		"plugin with a fingerprint": {[]string{"--values", allValues, "--set", "mode=ra"}, "DaemonSet", map[string]object{
			"default": {"refresh": "7m", "pinned": true, "fingerprint": "84a06f1a9c0b8f1c4f2f6e0d1b5e0a3f7c7d3b2a1908f7e6d5c4b3a291807f6e"},
		}},
	} {
		issuers := at(config(t, render(t, test.values...)[test.kind]), "issuers")
		for issuer, want := range test.want {
			if got := at(issuers, issuer, "roots"); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: the issuer %s has roots: %v, want %v", name, issuer, got, want)
			}
		}
	}
	directory := pluginFiles(t, render(t, pinned()...))
	if err := startPlugin(directory); !refusedForTheDirectory(err) {
		t.Error(err)
	}
	file := filepath.Join(directory, "issuers/edge/ca.crt")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := startPlugin(directory); err == nil || !strings.Contains(err.Error(), "issuers.edge.roots.caBundleFile (in the chart: caBundle): open "+file) {
		t.Errorf("without the file: %v", err)
	}
}
