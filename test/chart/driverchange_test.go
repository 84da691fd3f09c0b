package chart

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Mounted volumes would be left behind if an upgrade changed the name of the driver or
// the kubelet's directory: the chart refuses it, says what would happen and what to do,
// and finds both in the DaemonSet of the release.
func TestDriverChangeIsRefused(t *testing.T) {
	kubeconfig := clusterWith(t, render(t)["DaemonSet"])
	upgrade := func(args ...string) error {
		_, err := template(append([]string{"--is-upgrade", "--dry-run=server", "--disable-openapi-validation", "--kubeconfig", kubeconfig}, args...)...)
		return err
	}
	const ends = " Pods with volumes of csi.step-ca.io would keep their files, but nothing would renew their certificates, and the kubelet could not remove these pods. Delete the pods first, uninstall this release, and install it again; or set "
	const unused = " If no pod has a volume of csi.step-ca.io, perhaps because the value never worked, set allowDriverChange=true for this upgrade\n"
	const name = "\n- driverName: this release runs as csi.step-ca.io, and this upgrade changes it to tls.example.com." + ends +
		"driverName back, install a release with driverName tls.example.com in another namespace, and uninstall this one when all pods use the new name." + unused
	const directory = "\n- kubeletDir: this release runs with /var/lib/kubelet, and this upgrade changes it to /var/lib/other." + ends +
		"kubeletDir back, and install a release for the nodes with the other directory (docs/distributions.md)." + unused
	for set, want := range map[string][]string{
		"driverName=tls.example.com":                             {name},
		"kubeletDir=/var/lib/other/":                             {directory},
		"driverName=tls.example.com,kubeletDir=/var/lib/other":   {name, directory},
		"driverName=tls.example.com,kubeletDir=/var/lib/kubelet": {name},
	} {
		err := upgrade("--set", set)
		if err == nil {
			t.Errorf("the chart accepts the upgrade with %s", set)
			continue
		}
		for _, sentence := range want {
			if !strings.Contains(err.Error(), sentence) {
				t.Errorf("%s: the error does not contain %q:\n%v", set, sentence, err)
			}
		}
		if got := strings.Count(err.Error(), "\n- "); got != len(want) {
			t.Errorf("%s: %d sentences, want %d:\n%v", set, got, len(want), err)
		}
	}
	for _, args := range [][]string{
		{},
		{"--set", "kubeletDir=/var/lib/kubelet/,driverName=csi.step-ca.io"},
		{"--set", "verbosity=4,mode=node"},
		{"--set", "driverName=tls.example.com,allowDriverChange=true"},
		{"--set", "kubeletDir=/var/lib/other,allowDriverChange=true"},
		{"--set", "driverName=tls.example.com,fullnameOverride=another"}, // no DaemonSet of this name
	} {
		if err := upgrade(args...); !unknownKind(err) {
			t.Errorf("%v: %v", args, err)
		}
	}
	// An install finds nothing to compare with, and neither does rendering without a cluster.
	if _, err := template("--dry-run=server", "--disable-openapi-validation", "--kubeconfig", kubeconfig, "--set", "driverName=tls.example.com"); !unknownKind(err) {
		t.Error(err)
	}
	if _, err := template("--is-upgrade", "--set", "driverName=tls.example.com"); err != nil {
		t.Error(err)
	}
}

// A DaemonSet of another shape is not a reason to fail.
func TestDriverChangeOfAnotherDaemonSet(t *testing.T) {
	for _, daemonSet := range []object{
		{},
		{"spec": object{"template": object{"spec": object{"containers": []any{object{"name": "x"}}, "volumes": []any{object{"name": "plugin", "emptyDir": object{}}}}}}},
		{"spec": object{"template": object{"spec": object{"containers": []any{object{"name": "x", "args": []any{"--kubelet-dir"}}}}}}},
	} {
		daemonSet["apiVersion"], daemonSet["kind"], daemonSet["metadata"] = "apps/v1", "DaemonSet", object{"name": "step-csi", "namespace": "step-ca"}
		if _, err := template("--is-upgrade", "--dry-run=server", "--disable-openapi-validation", "--kubeconfig", clusterWith(t, daemonSet), "--set", "driverName=tls.example.com"); !unknownKind(err) {
			t.Errorf("%v: %v", daemonSet, err)
		}
	}
}

// unknownKind tells whether Helm has rendered the chart, and then found that the cluster of
// clusterWith has no other objects than DaemonSets.
func unknownKind(err error) bool {
	return err != nil && strings.Contains(err.Error(), `no matches for kind "CSIDriver"`)
}

// clusterWith serves what Helm asks an API server for, and returns its kubeconfig. The
// cluster has one object, a DaemonSet.
func clusterWith(t *testing.T, daemonSet object) string {
	t.Helper()
	answers := map[string]any{
		"/version": object{"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
		"/api":     object{"kind": "APIVersions", "versions": []string{"v1"}},
		"/apis": object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []object{{"name": "apps",
			"versions":         []object{{"groupVersion": "apps/v1", "version": "v1"}},
			"preferredVersion": object{"groupVersion": "apps/v1", "version": "v1"}}}},
		"/api/v1": object{"kind": "APIResourceList", "groupVersion": "v1", "resources": []object{}},
		"/apis/apps/v1": object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "apps/v1", "resources": []object{
			{"name": "daemonsets", "singularName": "daemonset", "namespaced": true, "kind": "DaemonSet", "verbs": []string{"get", "list"}}}},
		"/apis/apps/v1/namespaces/step-ca/daemonsets/step-csi": daemonSet,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, found := answers[r.URL.Path]
		if !found {
			w.WriteHeader(http.StatusNotFound)
			answer = object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": http.StatusNotFound}
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	data, err := yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []object{{"name": "test", "cluster": object{"server": server.URL}}},
		"contexts": []object{{"name": "test", "context": object{"cluster": "test", "user": "test"}}},
		"users":    []object{{"name": "test", "user": object{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
