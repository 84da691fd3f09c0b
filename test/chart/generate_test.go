package chart

import (
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestGenerated compares what is generated from the chart with what is in the
// repository; with -update, as in `make generate`, it writes it there.
func TestGenerated(t *testing.T) {
	files := map[string]string{chart + "/README.md": readme(t)}
	for name, content := range kustomization(t) {
		files[root+"/deploy/kustomize/"+name] = content
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

// readme describes the values by their comments.
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

// kustomization is the chart with its default values, but for what is only of
// use to Helm. The configuration is a file of its own; kustomize puts its hash
// into the name of the ConfigMap, so that the pods restart when it changes.
func kustomization(t *testing.T) map[string]string {
	t.Helper()
	objects := render(t)
	files := map[string]string{
		"kustomization.yaml": `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: step-ca
resources:
  - csidriver.yaml
  - daemonset.yaml
  - serviceaccount.yaml
configMapGenerator:
  - name: step-csi
    files:
      - step-csi.yaml
`,
		"step-csi.yaml": at(objects["ConfigMap"], "data", "step-csi.yaml").(string),
	}
	delete(at(objects["DaemonSet"], "spec", "template", "metadata").(object), "annotations")
	for kind, file := range map[string]string{"CSIDriver": "csidriver.yaml", "DaemonSet": "daemonset.yaml", "ServiceAccount": "serviceaccount.yaml"} {
		labels := at(objects[kind], "metadata", "labels").(object)
		delete(labels, "helm.sh/chart")
		delete(labels, "app.kubernetes.io/managed-by")
		data, err := yaml.Marshal(objects[kind])
		if err != nil {
			t.Fatal(err)
		}
		files[file] = string(data)
	}
	for name, content := range files {
		files[name] = "# Made from the chart by make generate; do not edit.\n" + content
	}
	return files
}

// kustomize makes the same objects of it as Helm, and the DaemonSet has the
// ConfigMap by the name that kustomize gives it.
func TestKustomize(t *testing.T) {
	text, err := command(".", kustomize, "build", root+"/deploy/kustomize")
	if err != nil {
		t.Fatal(err)
	}
	got, want := objects(t, text), render(t)
	delete(want, "hook")
	if len(got) != len(want) {
		t.Errorf("%d objects, not %d", len(got), len(want))
	}
	if err := startPlugin(writeConfigVolume(t, got)); !refusedForTheDirectory(err) {
		t.Error(err)
	}
}
