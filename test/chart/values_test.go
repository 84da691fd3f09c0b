package chart

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// allValues changes every value of values.yaml.
const allValues = "testdata/all.yaml"

func TestLint(t *testing.T) {
	for _, file := range append(valueFiles(t), os.DevNull) {
		if out, err := command(".", helm, "lint", "--strict", chart, "--namespace", "step-ca", "--values", file); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// Each value is in testdata/all.yaml, is described in the README, and changes the
// rendered objects: either alone, or together with all other values.
func TestEveryValue(t *testing.T) {
	defaults, all := leaves(t, chart+"/values.yaml"), leaves(t, allValues)
	byDefault, withAll := mustTemplate(t), mustTemplate(t, "--values", allValues)
	all["mode"] = "node"                 // ignores many values
	all["networkPolicy.enabled"] = false // likewise
	all["hostNetwork"] = true            // removes the node plugin's NetworkPolicy
	all["csiDriver.create"] = false      // ignores the other values of the CSIDriver object
	all["ra.existing.release"] = "other" // ignores the other values of the authority
	all["ra.existing.fullname"] = "other-step-csi"
	// Another type, and its Secret, exclude other values: TestPasswordIsOnlyInTheVolume has them.
	const provisioner = "issuers.default.provisioner."
	for _, path := range []string{"type", "certificateSecret.name"} {
		delete(defaults, provisioner+path)
		delete(all, provisioner+path)
	}
	delete(all, "allowDriverChange") // has an effect in a cluster: TestDriverChangeIsRefused
	delete(defaults, "allowDriverChange")
	x5c := []string{"--set", provisioner + "type=x5c," + provisioner + "certificateSecret.name=x5c"}
	withX5C := mustTemplate(t, x5c...)
	readme := read(t, chart+"/README.md")
	for _, path := range slices.Sorted(maps.Keys(defaults)) {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			changed, there := all[path]
			if !there || reflect.DeepEqual(changed, defaults[path]) {
				t.Fatalf("%s does not change it", allValues)
			}
			if !described(readme, path) {
				t.Error("README.md does not describe this value: its comment in values.yaml must begin with # --")
			}
			if strings.HasPrefix(path, provisioner+"certificateSecret.") {
				if mustTemplate(t, append([]string{"--values", valueFile(t, path, changed)}, x5c...)...) == withX5C {
					t.Error("this value has no effect")
				}
				return
			}
			// An error is an effect, too.
			if alone, err := template("--values", valueFile(t, path, changed)); err == nil && alone == byDefault &&
				mustTemplate(t, "--values", allValues, "--values", valueFile(t, path, without(defaults[path], changed))) == withAll {
				t.Error("this value has no effect")
			}
		})
	}
	for path := range all {
		if _, there := defaults[path]; !there && !strings.HasPrefix(path, "issuers.second.") && !strings.HasPrefix(path, "issuers.third.") {
			t.Errorf("%s has %s, but values.yaml does not", allValues, path)
		}
	}
}

// without returns the default value, which Helm merges over the changed value. An empty
// object would not override the changed keys, so without gives them another value.
func without(byDefault, changed any) any {
	keys, isObject := changed.(object)
	if empty, _ := byDefault.(object); empty == nil || len(empty) > 0 || !isObject {
		return byDefault
	}
	others := object{}
	for key := range keys {
		others[key] = "another"
	}
	return others
}

func mustTemplate(t *testing.T, args ...string) string {
	t.Helper()
	out, err := template(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// described tells whether the README's table describes the value, or an object that
// contains it.
func described(readme, path string) bool {
	for {
		for line := range strings.Lines(readme) {
			if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) >= 4 && cells[0] == "| "+path {
				return cells[len(cells)-1] != "|" && !strings.HasPrefix(cells[len(cells)-1], " |")
			}
		}
		i := strings.LastIndex(path, ".")
		if i < 0 {
			return false
		}
		path = path[:i]
	}
}

// leaves returns the values of a file by their dotted paths. Lists, empty objects, and
// objects with the user's own keys are leaves.
func leaves(t *testing.T, file string) map[string]any {
	t.Helper()
	var values object
	if err := yaml.UnmarshalStrict([]byte(read(t, file)), &values); err != nil {
		t.Fatal(file, err)
	}
	all := map[string]any{}
	var walk func(path string, value any)
	walk = func(path string, value any) {
		if o, ok := value.(object); ok && len(o) > 0 && !free(path) {
			for key, value := range o {
				walk(strings.TrimPrefix(path+"."+key, "."), value)
			}
			return
		}
		all[path] = value
	}
	walk("", values)
	return all
}

// free tells whether users choose the keys of the object.
func free(path string) bool {
	last := path[strings.LastIndex(path, ".")+1:]
	return slices.Contains([]string{"nodeSelector", "affinity", "requests", "limits", "labels"}, last) && path != "limits" ||
		strings.HasSuffix(strings.ToLower(last), "annotations") || strings.HasSuffix(last, "Labels")
}

// valueFile writes a file with only this value.
func valueFile(t *testing.T, path string, value any) string {
	t.Helper()
	keys := strings.Split(path, ".")
	for _, key := range slices.Backward(keys) {
		value = object{key: value}
	}
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "values.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// The schema refuses unknown keys, other types and numbers out of range. TestFaults has
// the rest.
func TestWrongValuesAreRefused(t *testing.T) {
	for _, c := range []struct{ name, values, reason string }{
		{"misspelt key", `kubletDir: /x`, "'kubletDir' not allowed"},
		{"misspelt key of an object", `policy: {allowShortName: true}`, "'allowShortName' not allowed"},
		{"misspelt key of the default issuer", `issuers: {default: {fingerPrint: ""}}`, "'fingerPrint' not allowed"},
		{"misspelt key of a validation", `policy: {validations: [{expresion: "true"}]}`, "missing property 'expression'"},
		{"podInfoOnMount", `csiDriver: {podInfoOnMount: false}`, "'podInfoOnMount' not allowed"},
		{"password in the values", `issuers: {default: {provisioner: {password: x}}}`, "'password' not allowed"},
		{"unknown provisioner type", `issuers: {default: {provisioner: {type: acme}}}`, "/issuers/default/provisioner/type"},
		{"pull policy", `image: {pullPolicy: always}`, "/image/pullPolicy"},
		{"port", `httpPort: 98080`, "/httpPort"},
		{"Pod Security level", `csiDriver: {ephemeralVolumeProfile: strict}`, "/csiDriver/ephemeralVolumeProfile"},
		{"mode", `mode: RA`, "/mode"},
		{"no replica", `ra: {replicas: 0}`, "/ra/replicas"},
		{"no volumes", `limits: {volumesPerPod: 0}`, "/limits/volumesPerPod"},
		{"limit of nothing", `ra: {limits: {node: {rate: 0}}}`, "/ra/limits/node/rate"},
		{"no time to stop", `ra: {terminationGracePeriodSeconds: 1}`, "/ra/terminationGracePeriodSeconds"},
		{"OpenShift perhaps", `openshift: {scc: {enabled: auto}}`, "/openshift/scc/enabled"},
		{"misspelt key of an issuer's policy", `issuers: {default: {policy: {allowShortNames: true}}}`, "'allowShortNames' not allowed"},
		{"misspelt key of another issuer", `issuers: {second: {urll: x}}`, "at '/issuers/second': additional properties 'urll' not allowed"},
		{"an issuer that is a text", `issuers: {second: x}`, "at '/issuers/second': got string, want null or object"},
		{"a text for a number", `verbosity: high`, "at '/verbosity': got string, want integer"},
		{"a text for a section", `ra: x`, "at '/ra': got string, want object"},
		{"verbosity", `verbosity: 11`, "at '/verbosity': maximum: got 11, want 10"},
		{"a URL twice", `issuers: {default: {urls: ["https://a", "https://a"]}}`, "at '/issuers/default/urls': items at 0 and 1 are equal"},
		{"a Secret without a name", `imagePullSecrets: [{}]`, "at '/imagePullSecrets/0': missing property 'name'"},
		{"DNS policy", `dnsPolicy: none`, "at '/dnsPolicy': value must be one of '', 'Default', 'ClusterFirst', 'ClusterFirstWithHostNet'"},
		{"unknown nodes", `ra: {runOn: workers}`, "/ra/runOn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, []byte(c.values), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := template("--values", file)
			if err == nil {
				t.Fatal("helm accepts these values")
			}
			if !strings.Contains(err.Error(), c.reason) {
				t.Errorf("the error does not contain %q:\n%v", c.reason, err)
			}
		})
	}
}

// Mode ra needs Kubernetes 1.30, which puts the pod's node into tokens.
func TestKubernetesIsTooOld(t *testing.T) {
	if _, err := template("--kube-version", "1.29.9"); err == nil || !strings.Contains(err.Error(), "mode ra needs Kubernetes 1.30") {
		t.Error(err)
	}
	mustTemplate(t, "--kube-version", "1.29.9", "--set", "mode=node")
}

// The chart accepts global values, which a parent chart may pass.
func TestGlobalValuesAreAccepted(t *testing.T) {
	mustTemplate(t, "--set", "global.x=1")
}

const fingerprint = "84a06f1a9c0b8f1c4f2f6e0d1b5e0a3f7c7d3b2a1908f7e6d5c4b3a291807f6e"
