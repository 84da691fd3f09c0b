package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The dashboard asks only for metrics of docs/monitoring.md, which an integration test
// compares with the metrics of the programs, and with their labels. Its expressions are
// valid, and it names existing alerts.
func TestDashboard(t *testing.T) {
	configMap := render(t, "--set", "monitoring.dashboard.enabled=true")["ConfigMap for dashboard"]
	if at(configMap, "metadata", "labels", "grafana_dashboard") != "1" {
		t.Errorf("labels: %v", at(configMap, "metadata", "labels"))
	}
	var dashboard struct {
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Panels []struct {
			ID                       int
			Type, Title, Description string
			Targets                  []struct{ Expr, LegendFormat string }
			GridPos                  struct{ X, Y, W, H int }
		}
	}
	if err := json.Unmarshal([]byte(at(configMap, "data", "step-csi.json").(string)), &dashboard); err != nil {
		t.Fatal(err)
	}
	manual := read(t, root+"/docs/monitoring.md")
	metric := regexp.MustCompile(`step_csi_\w+`)
	documented := func(where, expression string) {
		for _, name := range metric.FindAllString(expression, -1) {
			if !strings.Contains(manual, "\n| `"+strings.TrimSuffix(name, "_bucket")+"` |") {
				t.Errorf("%s: docs/monitoring.md has no metric %s", where, name)
			}
		}
	}
	variables := []string{"$__rate_interval", "5m"}
	for _, v := range dashboard.Templating.List {
		documented("the variable "+v.Name, v.Definition)
		variables = append(variables, "$"+v.Name, ".*")
	}
	var alerts strings.Builder
	for _, rule := range rules(t) {
		fmt.Fprintln(&alerts, rule["alert"])
	}
	records := []object{}
	cells := map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("%s: no expression", p.Title)
		}
		for _, target := range p.Targets {
			documented(p.Title, target.Expr)
			expression := strings.NewReplacer(variables...).Replace(target.Expr)
			if strings.Contains(expression, "$") {
				t.Errorf("%s: unknown variable in %s", p.Title, expression)
			}
			// A label of the legend is a label of the result.
			for _, label := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(target.LegendFormat, -1) {
				if by := regexp.MustCompile(`by \([^)]*\b` + label[1] + `\b`); !by.MatchString(expression) {
					t.Errorf("%s: %s has no label %s", p.Title, expression, label[1])
				}
			}
			records = append(records, object{"record": fmt.Sprintf("panel_%d", len(records)), "expr": expression})
		}
		for _, name := range regexp.MustCompile(`StepCSI\w+`).FindAllString(p.Description, -1) {
			if !strings.Contains(alerts.String(), name+"\n") {
				t.Errorf("%s: there is no alert %s", p.Title, name)
			}
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if x >= 24 || cells[[2]int{x, y}] != "" {
					t.Fatalf("%s overlaps %q or the edge", p.Title, cells[[2]int{x, y}])
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
	}
	if len(dashboard.Panels) < 10 {
		t.Errorf("%d panels", len(dashboard.Panels))
	}
	data, err := json.Marshal(object{"groups": []object{{"name": "dashboard", "rules": records}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file)
}
