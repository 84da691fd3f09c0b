package chart

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/issuer/policy"
)

// The plugin gets as far as the kubelet's directory with what is in
// /etc/step-csi, so it has accepted the configuration and found its files.
func TestPluginAcceptsTheConfiguration(t *testing.T) {
	for _, file := range append(valueFiles(t), os.DevNull) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			directory := writeConfigVolume(t, render(t, "--values", file))
			if err := startPlugin(directory); !refusedForTheDirectory(err) {
				t.Error(err)
			}
		})
	}
}

// The above would not notice if the plugin did not look at the configuration.
func TestPluginRefusesAnIncompleteConfiguration(t *testing.T) {
	for _, file := range []string{"step-csi.yaml", "issuers/default/password", "issuers/default/ca.crt"} {
		directory := writeConfigVolume(t, render(t))
		if err := os.Remove(filepath.Join(directory, file)); err != nil {
			t.Fatal(err)
		}
		if err := startPlugin(directory); !strings.Contains(err.Error(), file) {
			t.Errorf("without %s: %v", file, err)
		}
	}
}

func refusedForTheDirectory(err error) bool {
	return strings.Contains(err.Error(), "kubelet's directory")
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

// writeConfigVolume makes the files of the volume "config" as the kubelet does,
// with contents of the right kind for what comes from Secrets and ConfigMaps
// that are not the chart's.
func writeConfigVolume(t *testing.T, objects map[string]object) string {
	t.Helper()
	directory := t.TempDir()
	for _, source := range configSources(objects["DaemonSet"]) {
		for _, item := range items(source) {
			path := filepath.Join(directory, item.path)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			content := "password\n"
			switch filepath.Base(path) {
			case "step-csi.yaml":
				if at(objects["ConfigMap"], "metadata", "name") != at(source, "configMap", "name") {
					t.Fatal("the volume has another ConfigMap than the chart's")
				}
				content = at(objects["ConfigMap"], "data", item.key).(string)
			case "ca.crt":
				content = read(t, "testdata/root_ca.crt")
			}
			if err := os.WriteFile(path, []byte(content), 0o400); err != nil {
				t.Fatal(err)
			}
		}
	}
	return directory
}

func configSources(daemonSet object) []any {
	for _, v := range at(daemonSet, "spec", "template", "spec", "volumes").([]any) {
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
		t.Errorf("values.yaml has\n%+v\nand the plugin\n%+v", got, want)
	}
}

// tidy leaves out how the text is broken into lines.
func tidy(cel string) string { return strings.Join(strings.Fields(cel), " ") }

// An empty list is left to the plugin, which has the same one.
func TestEmptyPolicyIsAccepted(t *testing.T) {
	objects := render(t, "--set-json", "policy.validations=[]")
	if err := startPlugin(writeConfigVolume(t, objects)); !refusedForTheDirectory(err) {
		t.Error(err)
	}
}
