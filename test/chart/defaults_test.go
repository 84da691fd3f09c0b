package chart

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// defaults generates the chart's defaults.yaml: the value of each path. Sections, which
// are objects whose keys the schema lists, have a path for each key.
func defaults(t *testing.T) string {
	t.Helper()
	all := object{}
	eachValue(t, func(path string, value any, isSection bool) {
		if !isSection {
			all[path] = value
		}
	})
	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return "# Made from values.yaml by make generate; do not edit.\n" + string(text)
}

// eachValue calls visit for each section and each value of values.yaml, whose keys contain
// no dot.
func eachValue(t *testing.T, visit func(path string, value any, isSection bool)) {
	t.Helper()
	var values, schema object
	for file, into := range map[string]*object{"values.yaml": &values, "values.schema.json": &schema} {
		if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(chart, file))), into); err != nil {
			t.Fatal(file, err)
		}
	}
	var walk func(path string, value, schema any)
	walk = func(path string, value, own any) {
		if ref, _ := at(own, "$ref").(string); ref != "" {
			own = at(schema, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
		}
		section, isObject := value.(object)
		properties, listed := at(own, "properties").(object)
		if path == "issuers" {
			properties, listed = object{"default": at(own, "additionalProperties")}, true
		}
		isSection := isObject && listed
		if path != "" {
			visit(path, value, isSection)
		}
		if !isSection {
			return
		}
		for _, key := range slices.Sorted(maps.Keys(section)) {
			walk(strings.TrimPrefix(path+"."+key, "."), section[key], properties[key])
		}
	}
	walk("", values, schema)
}

// A section or a value that is null has its default. Only issuers.default is removed.
func TestNullIsTheDefault(t *testing.T) {
	byDefault := mustTemplate(t)
	sections := 0
	var values []string
	eachValue(t, func(path string, _ any, isSection bool) {
		if !isSection {
			values = append(values, path+"=null")
			return
		}
		sections++
		if path == "issuers.default" {
			return
		}
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			if got := mustTemplate(t, "--set", path+"=null"); got != byDefault {
				t.Errorf("null is not the default:\n%s", got)
			}
		})
	})
	if mustTemplate(t, "--set", strings.Join(values, ",")) != byDefault {
		t.Error("with null for all values, the objects are not those by default")
	}
	// Half of them, so that no section is empty.
	for start := range 2 {
		var half []string
		for i := start; i < len(values); i += 2 {
			half = append(half, values[i])
		}
		if mustTemplate(t, "--set", strings.Join(half, ",")) != byDefault {
			t.Errorf("with null for every other value from %s, the objects are not those by default", half[0])
		}
	}
	if sections < 40 || len(values) < 100 {
		t.Errorf("only %d sections and %d values", sections, len(values))
	}
}

// Null in a subchart, on the command line and in the values of the parent, is the default,
// too.
func TestNullInASubchart(t *testing.T) {
	parent := t.TempDir()
	if err := os.CopyFS(filepath.Join(parent, "charts/step-csi"), os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	subchart := func(t *testing.T, values string, args ...string) string {
		t.Helper()
		for file, content := range map[string]string{"Chart.yaml": "apiVersion: v2\nname: parent\nversion: 1.0.0\n", "values.yaml": values} {
			if err := os.WriteFile(filepath.Join(parent, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text, err := command(".", helm, append([]string{"template", "step-csi", parent, "--namespace", "step-ca", "--kube-version", "1.37.0"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	byDefault := subchart(t, "")
	if got := strings.ReplaceAll(byDefault, "# Source: parent/charts/", "# Source: "); got != mustTemplate(t) {
		t.Error("the subchart renders something else than the chart")
	}
	for _, path := range []string{"ra", "ra.podDisruptionBudget", "networkPolicy", "issuers", "issuers.default.caBundle", "resources", "mode"} {
		if subchart(t, "", "--set", "step-csi."+path+"=null") != byDefault {
			t.Errorf("--set step-csi.%s=null is not the default", path)
		}
		values := "null"
		for _, key := range slices.Backward(strings.Split("step-csi."+path, ".")) {
			values = fmt.Sprintf("{%s: %s}", key, values)
		}
		if subchart(t, values) != byDefault {
			t.Errorf("%s in the parent's values is not the default", values)
		}
	}
	edge := "--set=step-csi.issuers.edge.url=https://ca.example.com,step-csi.issuers.edge.fingerprint=" + fingerprint +
		",step-csi.issuers.edge.provisioner.type=jwk,step-csi.issuers.edge.provisioner.name=a,step-csi.issuers.edge.provisioner.keySecret.name=a,step-csi.issuers.edge.provisioner.keySecret.key=a"
	if got := subchart(t, "", edge, "--set", "step-csi.issuers.default=null"); strings.Contains(got, "step-certificates") {
		t.Errorf("step-csi.issuers.default=null does not remove the issuer:\n%s", got)
	}
}

// Keys of the user's own maps are removed by null, as everywhere with Helm.
func TestNullRemovesOwnKeys(t *testing.T) {
	got := render(t, "--set", `nodeSelector.kubernetes\.io/os=null,resources.limits.memory=null`)
	pod := at(got["DaemonSet"], "spec", "template", "spec")
	if at(pod, "nodeSelector") != nil {
		t.Errorf("the node selector is %v", at(pod, "nodeSelector"))
	}
	if limits := at(at(pod, "containers").([]any)[0], "resources", "limits"); len(limits.(object)) > 0 {
		t.Errorf("the limits are %v", limits)
	}
}

// Every template begins with the defaults and the checks of values.
func TestEveryTemplateSetsDefaults(t *testing.T) {
	found := 0
	err := filepath.WalkDir(chart+"/templates", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) == ".tpl" {
			return err
		}
		found++
		if !strings.HasPrefix(read(t, path), `{{- include "step-csi.values" . -}}`+"\n") {
			t.Errorf(`%s does not begin with {{- include "step-csi.values" . -}}`, path)
		}
		return nil
	})
	if err != nil || found < 10 {
		t.Error(found, err)
	}
}
