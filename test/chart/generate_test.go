package chart

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestGenerated compares the generated files with the repository. With -update, as in
// `make generate`, it writes the files.
func TestGenerated(t *testing.T) {
	files := map[string]string{chart + "/README.md": readme(t), chart + "/defaults.yaml": defaults(t)}
	for _, o := range overlays {
		for name, content := range kustomization(t, o) {
			files[filepath.Join(o.directory, name)] = content
		}
	}
	for name, content := range monitoring(t) {
		files[root+"/deploy/monitoring/"+name] = content
	}
	for path, want := range files {
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not up to date: run make generate (%v)", filepath.Clean(path), err)
		}
	}
}

// readme generates the chart's README from the comments of the values.
func readme(t *testing.T) string {
	t.Helper()
	directory := t.TempDir()
	if err := os.CopyFS(directory, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	if _, err := command(directory, helmDocs, "--log-level=warning", "--sort-values-order=file"); err != nil {
		t.Fatal(err)
	}
	return read(t, directory+"/README.md")
}

// kustomizeFiles are the kinds of the objects in each file.
var kustomizeFiles = map[string][]string{
	"csidriver.yaml": {"CSIDriver"},
	"node.yaml":      {"ServiceAccount", "DaemonSet"},
	"ra.yaml": {"ra/ServiceAccount", "ra/ClusterRole", "ra/ClusterRoleBinding",
		"ra/Service", "ra/Deployment", "ra/PodDisruptionBudget"},
	"networkpolicy.yaml": {"NetworkPolicy", "ra/NetworkPolicy"},
	"resourcequota.yaml": {"ResourceQuota"},
}

// overlays are the layouts that deploy/kustomize is made for.
var overlays = []overlay{
	{root + "/deploy/kustomize", "step-ca", nil},
	{root + "/deploy/kustomize/overlays/guide", "step-csi", []string{"--values", root + "/deploy/examples/values/guide.yaml"}},
}

type overlay struct {
	directory, namespace string
	values               []string // arguments of Helm
}

func (o overlay) render(t *testing.T) map[string]object {
	t.Helper()
	text, err := templateOf("step-csi", o.namespace, o.values...)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

// kustomization renders the chart with the values of the overlay, without the parts that
// only Helm uses. The configurations are separate files. kustomize makes immutable ConfigMaps
// of them, with their hashes in the names. So a changed configuration restarts the pods, and
// older pods keep theirs.
func kustomization(t *testing.T, o overlay) map[string]string {
	t.Helper()
	objects := o.render(t)
	files := map[string]string{
		"kustomization.yaml": `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: ` + o.namespace + `
resources:
  - csidriver.yaml
  - node.yaml
  - ra.yaml
  - networkpolicy.yaml
  - resourcequota.yaml
configMapGenerator:
  - name: step-csi
    files: [step-csi.yaml]
    options: {immutable: true}
  - name: step-csi-ra
    files: [step-csi.yaml=step-csi-ra.yaml]
    options: {immutable: true, labels: {app.kubernetes.io/name: step-csi-ra}}
`,
	}
	for kind, name := range map[string]string{"DaemonSet": "step-csi", "ra/Deployment": "step-csi-ra"} {
		data, err := yaml.JSONToYAML([]byte(configAnnotation(t, objects[kind])))
		if err != nil {
			t.Fatal(err)
		}
		files[name+".yaml"] = string(data)
		delete(at(objects[kind], "spec", "template", "metadata").(object), "annotations")
		for _, source := range configSources(objects[kind]) {
			if at(source, "downwardAPI") != nil {
				delete(source.(object), "downwardAPI")
				source.(object)["configMap"] = object{"name": name, "items": []any{object{"key": "step-csi.yaml", "path": "step-csi.yaml"}}}
			}
		}
	}
	return withObjects(t, files, kustomizeFiles, objects)
}

// withObjects adds the files with the chart's objects of these kinds.
func withObjects(t *testing.T, files map[string]string, kindsOf map[string][]string, objects map[string]object) map[string]string {
	t.Helper()
	for file, kinds := range kindsOf {
		var documents []string
		for _, kind := range kinds {
			labels := at(objects[kind], "metadata", "labels").(object)
			delete(labels, "helm.sh/chart")
			delete(labels, "app.kubernetes.io/managed-by")
			data, err := yaml.Marshal(objects[kind])
			if err != nil {
				t.Fatal(err)
			}
			documents = append(documents, string(data))
		}
		files[file] = strings.Join(documents, "---\n")
	}
	for name, content := range files {
		files[name] = "# Made from the chart by make generate; do not edit.\n" + content
	}
	return files
}

// monitoring generates the objects for the Prometheus operator.
func monitoring(t *testing.T) map[string]string {
	t.Helper()
	return withObjects(t, map[string]string{
		"kustomization.yaml": `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: step-ca
resources:
  - podmonitor.yaml
  - prometheusrule.yaml
`,
	}, map[string][]string{
		"podmonitor.yaml":     {"PodMonitor", "ra/PodMonitor"},
		"prometheusrule.yaml": {"PrometheusRule"},
	}, render(t, "--set", "monitoring.podMonitor.enabled=true,monitoring.prometheusRule.enabled=true"))
}

// kustomize makes the same objects as Helm, with the same contents, and the pods refer to
// the ConfigMaps by the names that kustomize generates.
func TestKustomize(t *testing.T) {
	for _, o := range overlays {
		built, err := command(".", kustomize, "build", o.directory)
		if err != nil {
			t.Fatal(err)
		}
		if o.namespace != "step-ca" {
			for _, other := range []string{"step-certificates", "namespace: step-ca\n", "step-ca/", ".step-ca.svc", ".step-ca\n"} {
				if strings.Contains(built, other) {
					t.Errorf("%s: %q is left of another layout", o.directory, other)
				}
			}
		}
		got, want := objects(t, built), o.render(t)
		for _, kind := range []string{"ConfigMap", "ra/ConfigMap"} {
			if at(got[kind], "immutable") != true {
				t.Errorf("%s: the %s is not immutable", o.directory, kind)
			}
			want[kind] = got[kind] // with Helm, the configuration is in the pods' annotations
		}
		maps.DeleteFunc(want, func(kind string, _ object) bool { return isHook(kind) })
		if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
			t.Errorf("%s: kustomize makes %v, but Helm makes %v", o.directory, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
		if err := startPlugin(pluginFiles(t, got)); !refusedForTheDirectory(err) {
			t.Error(err)
		}
		if err := startAuthority(authorityFiles(t, got)); !refusedForTheAddress(err) {
			t.Error(err)
		}
		for kind, file := range map[string]string{"ConfigMap": "step-csi.yaml", "ra/ConfigMap": "step-csi-ra.yaml"} {
			if at(got[kind], "data", "step-csi.yaml") != read(t, filepath.Join(o.directory, file)) {
				t.Errorf("%s: the %s is not %s", o.directory, kind, file)
			}
		}
		for kind := range want {
			if strings.HasSuffix(kind, "ConfigMap") {
				continue
			}
			for _, o := range []object{got[kind], want[kind]} {
				withoutTool(o)
			}
			if !reflect.DeepEqual(got[kind], want[kind]) {
				t.Errorf("%s: kustomize makes the %s\n%s\nbut Helm makes\n%s", o.directory, kind, text(t, got[kind]), text(t, want[kind]))
			}
		}
	}
}

// withoutTool removes what differs between kustomize and Helm: Helm's labels, and how pods
// get their configuration.
func withoutTool(o object) {
	labels, _ := at(o, "metadata", "labels").(object)
	delete(labels, "helm.sh/chart")
	delete(labels, "app.kubernetes.io/managed-by")
	if sources := configSources(o); len(sources) > 0 {
		sources[0] = nil
		delete(at(o, "spec", "template", "metadata").(object), "annotations")
	}
}
