package chart

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The program that calls the CA has the CA's URLs and the roots for its server. In mode ra,
// nodes have neither.
func TestConnectionToTheCA(t *testing.T) {
	values := []string{"--set-json", `issuers.default.urls=["https://ca-0.example.com","https://[fd00::1]:9000"]`,
		"--set", "issuers.default.url=https://unused.example.com,issuers.default.serverTLS=bundle,issuers.default.serverTLSBundle.configMap=ingress"}
	for mode, test := range map[string]struct {
		workload string
		files    func(*testing.T, map[string]object) string
		start    func(string) error
		accepted func(error) bool
	}{
		"ra":   {"ra/Deployment", authorityFiles, startAuthority, refusedForTheAddress},
		"node": {"DaemonSet", pluginFiles, startPlugin, refusedForTheDirectory},
	} {
		objects := render(t, append(values, "--set", "mode="+mode)...)
		got := at(config(t, objects[test.workload]), "issuers", "default").(object)
		if !reflect.DeepEqual(got["urls"], []any{"https://ca-0.example.com", "https://[fd00::1]:9000"}) || got["url"] != nil ||
			got["serverTLS"] != "bundle" || got["serverTLSBundleFile"] != "issuers/default/server.crt" {
			t.Errorf("mode %s: %v", mode, got)
		}
		if !strings.Contains(text(t, configSources(objects[test.workload])), `{"configMap":{"items":[{"key":"ca.crt","path":"issuers/default/server.crt"}],"name":"ingress"}}`) {
			t.Errorf("mode %s: %s", mode, text(t, configSources(objects[test.workload])))
		}
		directory := test.files(t, objects)
		if err := test.start(directory); !test.accepted(err) {
			t.Errorf("mode %s: %v", mode, err)
		}
		file := filepath.Join(directory, "issuers/default/server.crt")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := test.start(directory); err == nil || !strings.Contains(err.Error(), "serverTLSBundleFile (in the chart: serverTLSBundle): open "+file) {
			t.Errorf("mode %s without the file: %v", mode, err)
		}
		if mode == "ra" {
			node := text(t, objects["DaemonSet"])
			if strings.Contains(node, "ingress") || strings.Contains(node, "serverTLS") || strings.Contains(node, "urls") || strings.Contains(node, "ca-0") {
				t.Error("in mode ra, nodes have the connection to the CA")
			}
		}
	}
	if out, err := template("--set", "issuers.default.serverTLS=bundle,issuers.default.serverTLSBundle.configMap="); err == nil || !strings.Contains(err.Error()+out, "issuers.default.serverTLSBundle.configMap: name the ConfigMap") {
		t.Errorf("no ConfigMap: %v", err)
	}
}

// Both programs have the same proxy. What is in the cluster never goes through it.
func TestProxy(t *testing.T) {
	environment := func(workload object) map[string]string {
		all := map[string]string{}
		list, _ := at(at(workload, "spec", "template", "spec", "containers").([]any)[0], "env").([]any)
		for _, variable := range list {
			if value, ok := at(variable, "value").(string); ok {
				all[at(variable, "name").(string)] = value
			}
		}
		return all
	}
	for name, test := range map[string]struct {
		values []string
		want   map[string]string
	}{
		"none":     {[]string{"--set-json", `proxy.noProxy=[".example.com"]`}, map[string]string{}},
		"proxy":    {[]string{"--set", "proxy.url=http://192.0.2.1:3128"}, map[string]string{"HTTPS_PROXY": "http://192.0.2.1:3128", "NO_PROXY": ".svc,.cluster.local,$(KUBERNETES_SERVICE_HOST)"}},
		"no proxy": {[]string{"--set", "proxy.url=http://[fd00::1]:3128", "--set", "clusterDomain=k8s.example.com", "--set-json", `proxy.noProxy=[".internal","10.0.0.0/8"]`}, map[string]string{"HTTPS_PROXY": "http://[fd00::1]:3128", "NO_PROXY": ".internal,10.0.0.0/8,.svc,.k8s.example.com,$(KUBERNETES_SERVICE_HOST)"}},
	} {
		objects := render(t, append(test.values, "--set-json", `extraEnv=[{"name":"A","value":"a"}]`, "--set-json", `ra.extraEnv=[{"name":"B","value":"b"}]`)...)
		for kind, extra := range map[string]string{"DaemonSet": "A", "ra/Deployment": "B"} {
			got := environment(objects[kind])
			if got[extra] == "" {
				t.Errorf("%s, %s: extraEnv is missing", name, kind)
			}
			delete(got, extra)
			delete(got, "STEP_CSI_STATUS_SOCKET")
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("%s, %s: %v", name, kind, got)
			}
		}
	}
}
