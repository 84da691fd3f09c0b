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
	all["ra.hostNetwork"] = true         // likewise
	all["csiDriver.create"] = false      // ignores the other values of the CSIDriver object
	all["ra.existing.release"] = "other" // ignores the other values of the authority
	all["ra.existing.fullname"] = "other-step-csi"
	all["monitoring.serviceMonitor.enabled"] = true // excludes PodMonitors
	// Another type, and its Secret, exclude other values: TestPasswordIsOnlyInTheVolume has them.
	const provisioner = "issuers.default.provisioner."
	for _, path := range []string{"type", "certificateSecret.name"} {
		delete(defaults, provisioner+path)
		delete(all, provisioner+path)
	}
	// Values that matter only together with another one.
	switches := map[string]string{
		provisioner + "certificateSecret.": provisioner + "type=x5c," + provisioner + "certificateSecret.name=x5c",
		"monitoring.serviceMonitor.":       "monitoring.serviceMonitor.enabled=true",
		"monitoring.prometheusRule.":       "monitoring.prometheusRule.enabled=true",
		"monitoring.dashboard.":            "monitoring.dashboard.enabled=true",
	}
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
			for prefix, on := range switches {
				if strings.HasPrefix(path, prefix) && path != prefix+"enabled" {
					if mustTemplate(t, "--values", valueFile(t, path, changed), "--set", on) == mustTemplate(t, "--set", on) {
						t.Error("this value has no effect")
					}
					return
				}
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
	return slices.Contains([]string{"nodeSelector", "affinity", "requests", "limits", "labels", "dnsConfig", "strategy", "alerts"}, last) && path != "limits" ||
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

func TestWrongValuesAreRefused(t *testing.T) {
	second := `{url: https://ca.example.com, fingerprint: ` + fingerprint + `, provisioner: {type: jwk, name: a, passwordSecret: {name: s, key: k}}}`
	for _, c := range []struct{ name, values, reason string }{
		{"misspelt key", `kubletDir: /x`, "'kubletDir' not allowed"},
		{"misspelt key of an object", `policy: {allowShortName: true}`, "'allowShortName' not allowed"},
		{"misspelt key of the default issuer", `issuers: {default: {fingerPrint: ""}}`, "'fingerPrint' not allowed"},
		{"misspelt key of a validation", `policy: {validations: [{expresion: "true"}]}`, "missing property 'expression'"},
		{"podInfoOnMount", `csiDriver: {podInfoOnMount: false}`, "'podInfoOnMount' not allowed"},
		{"password in the values", `issuers: {default: {provisioner: {password: x}}}`, "'password' not allowed"},
		{"driver name in upper case", `driverName: CSI.example.com`, "/driverName"},
		{"driver name too long", `driverName: ` + strings.Repeat("a", 64), "/driverName"},
		{"duration without a unit", `issuers: {default: {duration: {max: "24"}}}`, "/issuers/default/duration/max"},
		{"duration in days", `issuers: {default: {duration: {default: 1d}}}`, "/issuers/default/duration/default"},
		{"short fingerprint", `issuers: {default: {fingerprint: abcdef}}`, "/issuers/default/fingerprint"},
		{"plain HTTP", `issuers: {default: {url: "http://ca.example.com"}}`, "/issuers/default/url"},
		{"URL with a path", `issuers: {default: {url: "https://ca.example.com/acme"}}`, "/issuers/default/url"},
		{"unknown provisioner type", `issuers: {default: {provisioner: {type: acme}}}`, "/issuers/default/provisioner/type"},
		{"password of a certificate", `issuers: {default: {provisioner: {type: x5c, passwordSecret: {name: s}, certificateSecret: {name: s}}}}`, "issuers.default.provisioner: passwordSecret, keySecret and kid are for the type jwk"},
		{"kid of a certificate", `issuers: {default: {provisioner: {type: x5c, kid: k, certificateSecret: {name: s}}}}`, "issuers.default.provisioner: passwordSecret, keySecret and kid are for the type jwk"},
		{"no certificate", `issuers: {default: {provisioner: {type: x5c}}}`, "issuers.default.provisioner.certificateSecret.name: name the Secret"},
		{"certificate of a password", `issuers: {default: {provisioner: {certificateSecret: {name: s}}}}`, "issuers.default.provisioner.certificateSecret: is for the type x5c"},
		{"another issuer without a Secret", `issuers: {second: ` + strings.Replace(second, ", passwordSecret: {name: s, key: k}", "", 1) + `}`, "issuers.second.provisioner.passwordSecret: name the Secret"},
		{"no way to recognize the CA", `issuers: {default: {caBundle: {configMap: ""}}}`, "issuers.default: give the fingerprint of the CA's root, or its caBundle"},
		{"no issuer", `issuers: {default: null}`, "minProperties"},
		{"issuer with a path for a name", `issuers: {"../x": ` + second + `}`, "../x"},
		{"another issuer without anything", `issuers: {second: {}}`, "missing property 'provisioner'"},
		{"another issuer without a URL", `issuers: {second: ` + strings.Replace(second, "url: https://ca.example.com,", "", 1) + `}`, "missing property 'url'"},
		{"another issuer without a fingerprint", `issuers: {second: ` + strings.Replace(second, "fingerprint: "+fingerprint+",", "", 1) + `}`, "missing property 'fingerprint'"},
		{"another issuer without a key", `issuers: {second: ` + strings.Replace(second, ", key: k", "", 1) + `}`, "missing property 'key'"},
		{"another issuer with both", `issuers: {second: ` + strings.Replace(second, "url:", "caBundle: {secret: s, key: k}, url:", 1) + `}`, "'oneOf' failed, subschemas 0, 1 matched"},
		{"another issuer with two bundles", `issuers: {second: ` + strings.Replace(second, "fingerprint: "+fingerprint, "caBundle: {secret: s, configMap: c, key: k}", 1) + `}`, "'oneOf' failed, subschemas 0, 1 matched"},
		{"relative kubelet directory", `kubeletDir: var/lib/kubelet`, "/kubeletDir"},
		{"tag with a digest", `image: {tag: "1@sha256:abc"}`, "/image/tag"},
		{"short digest", `image: {digest: "sha256:abc"}`, "/image/digest"},
		{"pull policy", `image: {pullPolicy: always}`, "/image/pullPolicy"},
		{"port", `httpPort: 98080`, "/httpPort"},
		{"no node at a time", `updateStrategy: {rollingUpdate: {maxUnavailable: 0}}`, "/updateStrategy/rollingUpdate/maxUnavailable"},
		{"Pod Security level", `csiDriver: {ephemeralVolumeProfile: strict}`, "/csiDriver/ephemeralVolumeProfile"},
		{"mode", `mode: RA`, "/mode"},
		{"no replica", `ra: {replicas: 0}`, "/ra/replicas"},
		{"port of root", `ra: {port: 443}`, "/ra/port"},
		{"one port for two", `ra: {port: 9808}`, "ra.port and httpPort are the same"},
		{"limit without a burst", `ra: {limits: {pod: {rate: 1, burst: null}}}`, "missing property 'burst'"},
		{"no volumes", `limits: {volumesPerPod: 0}`, "/limits/volumesPerPod"},
		{"limit of nothing", `ra: {limits: {node: {rate: 0}}}`, "/ra/limits/node/rate"},
		{"no replica may be unavailable", `ra: {podDisruptionBudget: {maxUnavailable: 0}}`, "/ra/podDisruptionBudget/maxUnavailable"},
		{"no time to stop", `ra: {terminationGracePeriodSeconds: 1}`, "/ra/terminationGracePeriodSeconds"},
		{"unknown issuer of the authority", `ra: {issuer: edge}`, "ra.issuer: edge is none of the issuers"},
		{"no account for the plugin", `serviceAccount: {create: false}`, "serviceAccount.name: name the service account"},
		{"no account for the authority", `ra: {serviceAccount: {create: false}}`, "ra.serviceAccount.name: name the service account"},
		{"this release as the other", `ra: {existing: {release: step-csi}}`, "ra.existing.release: step-csi is this release"},
		{"name of no other release", `ra: {existing: {fullname: x}}`, "ra.existing.fullname: set ra.existing.release, too"},
		{"SELinux context with quotes", `seLinuxContext: '"a:b:c:s0"'`, "/seLinuxContext"},
		{"SELinux type alone", `seLinuxContext: container_file_t`, "/seLinuxContext"},
		{"OpenShift perhaps", `openshift: {scc: {enabled: auto}}`, "/openshift/scc/enabled"},
		{"misspelt key of an issuer's policy", `issuers: {default: {policy: {allowShortNames: true}}}`, "'allowShortNames' not allowed"},
		{"NetworkPolicy on the node's network", `hostNetwork: true`, "networkPolicy.nodeCIDRs: with hostNetwork"},
		{"address without a range", `networkPolicy: {nodeCIDRs: [192.0.2.1]}`, "/networkPolicy/nodeCIDRs/0"},
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
