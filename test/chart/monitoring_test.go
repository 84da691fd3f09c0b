package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// alertFiles are the files with the alerts, in Prometheus' format.
var alertFiles = []string{chart + "/alerts/plugin.yaml", chart + "/alerts/authority.yaml"}

// promtool runs promtool. Without promtool, the test fails, because untested alerts are
// worse than none.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Fatal("promtool is needed: apt-get install --no-install-recommends prometheus (its service is not): ", err)
	}
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Each alert fires when it should, with the right text, and is silent otherwise.
func TestAlerts(t *testing.T) {
	promtool(t, append([]string{"check", "rules", "--lint-fatal"}, alertFiles...)...)
	tests, err := filepath.Glob("testdata/alerts/*.yaml")
	if err != nil || len(tests) == 0 {
		t.Fatal("found no tests of alerts", err)
	}
	promtool(t, append([]string{"test", "rules"}, tests...)...)
	var tested strings.Builder
	for _, file := range tests {
		tested.WriteString(read(t, file))
	}
	manual := read(t, root+"/docs/monitoring.md")
	for _, rule := range rules(t) {
		name := rule["alert"].(string)
		for _, want := range []string{`alertname: ` + name + "\n        exp_alerts:\n", `alertname: ` + name + "\n        exp_alerts: []\n"} {
			if !strings.Contains(tested.String(), want) {
				t.Errorf("%s: no test has %q", name, want)
			}
		}
		if !strings.Contains(manual, "### "+name+"\n") {
			t.Errorf("docs/monitoring.md does not describe %s", name)
		}
		for _, path := range [][]string{{"labels", "severity"}, {"annotations", "summary"}, {"annotations", "description"}} {
			if text, _ := at(rule, path...).(string); text == "" {
				t.Errorf("%s has no %s", name, path)
			}
		}
		if url := at(rule, "annotations", "runbook_url"); url != "https://github.com/flexstack/step-csi/blob/main/docs/monitoring.md#"+strings.ToLower(name) {
			t.Errorf("%s: wrong runbook_url %v", name, url)
		}
	}
}

// rules returns the rules of all alert files.
func rules(t *testing.T) (all []object) {
	t.Helper()
	for _, file := range alertFiles {
		var content struct{ Groups []struct{ Rules []object } }
		if err := yaml.Unmarshal([]byte(read(t, file)), &content); err != nil {
			t.Fatal(err)
		}
		for _, group := range content.Groups {
			all = append(all, group.Rules...)
		}
	}
	return all
}

// The PrometheusRule has the alerts of all files, but the authority's only in mode ra.
func TestPrometheusRule(t *testing.T) {
	var want []any
	for _, file := range alertFiles {
		var content object
		if err := yaml.Unmarshal([]byte(read(t, file)), &content); err != nil {
			t.Fatal(err)
		}
		want = append(want, content["groups"].([]any)...)
	}
	for mode, want := range map[string][]any{"ra": want, "node": want[:1]} {
		rule := render(t, "--set", "monitoring.prometheusRule.enabled=true,mode="+mode)["PrometheusRule"]
		if got := at(rule, "spec", "groups"); !reflect.DeepEqual(got, want) {
			t.Errorf("mode %s: %v", mode, got)
		}
	}
}

// The PodMonitors select the right pods at an existing port, and use the job names of
// the alerts.
func TestPodMonitors(t *testing.T) {
	jobs := regexp.MustCompile(`job="([^"]*)"`)
	for file, want := range map[string]string{"plugin": "step-csi", "authority": "step-csi-ra"} {
		for _, found := range jobs.FindAllStringSubmatch(read(t, chart+"/alerts/"+file+".yaml"), -1) {
			if found[1] != want {
				t.Errorf("%s: job %s", file, found[1])
			}
		}
	}
	for _, values := range []string{allValues, os.DevNull} {
		objects := render(t, "--values", values, "--set", "monitoring.podMonitor.enabled=true,mode=ra")
		for kind, c := range map[string]struct{ pods, job string }{"PodMonitor": {"DaemonSet", "step-csi"}, "ra/PodMonitor": {"ra/Deployment", "step-csi-ra"}} {
			monitor, template := objects[kind], at(objects[c.pods], "spec", "template")
			selector := at(monitor, "spec", "selector", "matchLabels").(object)
			for name, pods := range map[string]string{c.pods: c.pods, "others": map[string]string{"DaemonSet": "ra/Deployment", "ra/Deployment": "DaemonSet"}[c.pods]} {
				if got := selects(selector, at(objects[pods], "spec", "template", "metadata", "labels")); got != (name == c.pods) {
					t.Errorf("%s selects the pods of the %s: %v", kind, pods, got)
				}
			}
			endpoint := at(monitor, "spec", "podMetricsEndpoints").([]any)[0]
			container := at(template, "spec", "containers").([]any)[0]
			if !slices.ContainsFunc(at(container, "ports").([]any), func(port any) bool { return at(port, "name") == at(endpoint, "port") }) {
				t.Errorf("%s: the pods have no port %v", kind, at(endpoint, "port"))
			}
			if job := at(endpoint, "relabelings").([]any)[0]; !reflect.DeepEqual(job, object{"targetLabel": "job", "replacement": c.job}) {
				t.Errorf("%s: %v", kind, job)
			}
			if at(endpoint, "honorLabels") != true {
				t.Errorf("%s: without honorLabels, the label namespace would be the plugin's namespace", kind)
			}
		}
	}
}
