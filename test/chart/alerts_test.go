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

// alertsOf returns the rules of the PrometheusRule by name, of the node plugin and then
// of the registration authority if both have the name, and checks them with promtool.
func alertsOf(t *testing.T, args ...string) map[string][]object {
	t.Helper()
	rule := render(t, append(args, "--set", "monitoring.prometheusRule.enabled=true")...)["PrometheusRule"]
	data, err := yaml.Marshal(rule["spec"])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file) // both programs have StepCSIPanic
	all := map[string][]object{}
	for _, group := range at(rule, "spec", "groups").([]any) {
		for _, r := range at(group, "rules").([]any) {
			name := at(r, "alert").(string)
			all[name] = append(all[name], r.(object))
		}
	}
	return all
}

// differences returns the names of the alerts that are not the same.
func differences(a, b map[string][]object) (names []string) {
	for name := range a {
		if !reflect.DeepEqual(a[name], b[name]) {
			names = append(names, name)
		}
	}
	for name := range b {
		if a[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// A threshold changes the alerts that values.yaml names, and no others.
func TestThresholds(t *testing.T) {
	byDefault := alertsOf(t)
	for values, c := range map[string]struct {
		expression string
		alerts     []string
	}{
		"rootExpiryDays=90": {"< 90 * 86400", []string{"StepCSIRootExpiring"}},
		"lifetimeLeft=0.35": {"< 0.35 * (", []string{"StepCSIAuthorityCertificateExpiring", "StepCSITokenCertificateExpiring"}},
		"refusedRatio=0":    {"> 0\n", []string{"StepCSIAuthorityRefusing"}},
	} {
		changed := alertsOf(t, "--set", "monitoring.prometheusRule.thresholds."+values)
		if got := differences(byDefault, changed); !slices.Equal(got, c.alerts) {
			t.Errorf("%s changes %v, want %v", values, got, c.alerts)
		}
		for _, name := range c.alerts {
			if expression := changed[name][0]["expr"].(string); !strings.Contains(expression+"\n", c.expression) {
				t.Errorf("%s: the expression of %s lacks %q: %s", values, name, c.expression, expression)
			}
		}
	}
}

// The values of docs/monitoring.md change the alerts as documented.
func TestChangedAlerts(t *testing.T) {
	_, text, _ := strings.Cut(read(t, root+"/docs/monitoring.md"), "```yaml\nmonitoring:\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		t.Fatal("docs/monitoring.md has no values that change alerts")
	}
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("monitoring:\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	byDefault, changed := alertsOf(t), alertsOf(t, "--values", file)
	want := []string{
		"ManyVolumes", "StepCSIAuthorityCertificateExpiring", "StepCSIAuthorityRefusing", "StepCSIRenewalAllowed",
		"StepCSIRenewalFailing", "StepCSIRootExpiring", "StepCSITokenCertificateExpiring",
	}
	if got := differences(byDefault, changed); !slices.Equal(got, want) {
		t.Errorf("the values change %v, want %v", got, want)
	}
	if changed["StepCSIRenewalAllowed"] != nil {
		t.Error("an alert that is not enabled is there")
	}
	failing := maps.Clone(byDefault["StepCSIRenewalFailing"][0])
	failing["for"], failing["labels"] = "1h", object{"severity": "info"}
	if got := changed["StepCSIRenewalFailing"][0]; !reflect.DeepEqual(got, failing) {
		t.Errorf("StepCSIRenewalFailing is %v, want %v", got, failing)
	}
}

// An alert of both programs is left out of both, and a group without rules, too. A
// misspelt name is refused.
func TestAlertsByName(t *testing.T) {
	if got := alertsOf(t, "--set", "monitoring.prometheusRule.alerts.StepCSIPanic.enabled=false"); got["StepCSIPanic"] != nil {
		t.Errorf("StepCSIPanic: %v", got["StepCSIPanic"])
	}
	var authority []string
	for _, name := range []string{"StepCSIAuthorityDown", "StepCSIAuthorityRefusing", "StepCSIAuthorityCertificateExpiring", "StepCSIPanic"} {
		authority = append(authority, "monitoring.prometheusRule.alerts."+name+".enabled=false")
	}
	objects := render(t, "--set", "monitoring.prometheusRule.enabled=true,"+strings.Join(authority, ","))
	if got := at(objects["PrometheusRule"], "spec", "groups").([]any); len(got) != 1 {
		t.Errorf("%d groups, want 1", len(got))
	}
	for values, want := range map[string]string{
		"alerts.StepCSIRootExpring.for=1h":      "monitoring.prometheusRule.alerts: StepCSIRootExpring is none of the alerts; they are StepCSIAuthorityCertificateExpiring, ",
		"alerts.StepCSIRootExpiring.fro=1h":     "'fro' not allowed",
		"alerts.StepCSIRootExpiring.for=1 hour": `monitoring.prometheusRule.alerts.StepCSIRootExpiring.for: "1 hour" is not a duration of Prometheus`,
		"thresholds.lifetimeLeft=20":            `monitoring.prometheusRule.thresholds.lifetimeLeft: "20" is not a number below 1, such as 0.2; write 20 percent as 0.2`,
	} {
		if _, err := template("--set", "monitoring.prometheusRule.enabled=true,monitoring.prometheusRule."+values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", values, err)
		}
	}
}

// The ServiceMonitors select the Services of the metrics, and not the one that node
// plugins call. The Services select the pods at an existing port, ready or not.
func TestServiceMonitors(t *testing.T) {
	for name, args := range map[string][]string{
		"default":      {"--set", "mode=ra"},
		"all values":   {"--values", allValues, "--set", "monitoring.podMonitor.enabled=false"},
		"another port": {"--set", "ra.httpPort=9809"},
	} {
		t.Run(name, func(t *testing.T) {
			objects := render(t, append(args, "--set", "monitoring.serviceMonitor.enabled=true")...)
			for kind, c := range map[string]struct{ service, pods, others, job string }{
				"ServiceMonitor":    {"Service for metrics", "DaemonSet", "ra/Deployment", "step-csi"},
				"ra/ServiceMonitor": {"ra/Service for metrics", "ra/Deployment", "DaemonSet", "step-csi-ra"},
			} {
				monitor, service := objects[kind], objects[c.service]
				selector := at(monitor, "spec", "selector", "matchLabels").(object)
				for other, o := range objects {
					labels := at(o, "metadata", "labels")
					if isService := strings.Contains(other, "Service") && o["kind"] == "Service"; isService && selects(selector, labels) != (other == c.service) {
						t.Errorf("the %s selects the %s: %v", kind, other, selects(selector, labels))
					}
				}
				pods := at(service, "spec", "selector").(object)
				if !selects(pods, at(objects[c.pods], "spec", "template", "metadata", "labels")) || selects(pods, at(objects[c.others], "spec", "template", "metadata", "labels")) {
					t.Errorf("the %s selects other pods than those of the %s", c.service, c.pods)
				}
				port := at(service, "spec", "ports").([]any)[0].(object)
				if number, there := portsOf(objects[c.pods])[port["targetPort"].(string)]; !there || port["port"] != float64(number) {
					t.Errorf("the %s has the port %v, and the pods have %v", c.service, port, portsOf(objects[c.pods]))
				}
				if at(service, "spec", "clusterIP") != "None" || at(service, "spec", "publishNotReadyAddresses") != true {
					t.Errorf("the %s: %v", c.service, service["spec"])
				}
				endpoint := at(monitor, "spec", "endpoints").([]any)[0]
				if at(endpoint, "port") != port["name"] || at(endpoint, "path") != "/metrics" || at(endpoint, "honorLabels") != true {
					t.Errorf("%s: %v", kind, endpoint)
				}
				if job := at(endpoint, "relabelings").([]any)[0]; !reflect.DeepEqual(job, object{"targetLabel": "job", "replacement": c.job}) {
					t.Errorf("%s: %v", kind, job)
				}
			}
			if objects["PodMonitor"] != nil {
				t.Error("there is a PodMonitor, too")
			}
		})
	}
	if _, err := template("--set", "monitoring.serviceMonitor.enabled=true,monitoring.podMonitor.enabled=true"); err == nil || !strings.Contains(err.Error(), "Prometheus would read all metrics twice") {
		t.Error(err)
	}
	alone := render(t, "--set", "metrics.service.enabled=true")
	if alone["Service for metrics"] == nil || alone["ra/Service for metrics"] == nil || alone["ServiceMonitor"] != nil {
		t.Error("metrics.service.enabled does not create the Services alone")
	}
}
