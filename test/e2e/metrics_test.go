//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The series of a namespace exist as long as its pods have volumes. They do not name the
// pods. The API server's proxy reads the metrics at the port that the chart sets, like
// Prometheus.
func metrics(t *testing.T) {
	namespace(t, "metrics", "baseline")
	p := pod{namespace: "metrics", name: "measured", attributes: map[string]string{"service-names": "measured"}}
	p.start(t)
	const labels = `{issuer="default",namespace="metrics"} `
	for _, series := range []string{
		"step_csi_volumes" + labels + "1",
		"step_csi_volumes_earliest_expiration_timestamp_seconds" + labels + strconv.FormatFloat(float64(p.files(t).NotAfter.Unix()), 'g', -1, 64),
	} {
		eventually(t, patience, func() error {
			if text := metricsOf(t, "step-csi"); !strings.Contains(text, series+"\n") || strings.Contains(text, p.name) {
				return fmt.Errorf("the series %s is missing, or the pod is named, in the metrics:\n%s", series, text)
			}
			return nil
		})
	}
	// The node plugin sees the limit of its container: 256Mi, as the chart sets it.
	if text := metricsOf(t, "step-csi"); !strings.Contains(text, "\nstep_csi_memory_limit_bytes 2.68435456e+08\n") || strings.Contains(text, "\nstep_csi_memory_used_bytes 0\n") {
		t.Errorf("the memory limit of the container is missing in the metrics:\n%s", text)
	}
	if text := metricsOf(t, "step-csi-ra"); !strings.Contains(text, "step_csi_ra_certificate_expiration_timestamp_seconds 1") {
		t.Errorf("the expiry of the authority's certificate is missing in its metrics:\n%s", text)
	}
	kubectl(t, "-n", p.namespace, "delete", "pod", p.name, "--now")
	eventually(t, patience, func() error {
		if text := metricsOf(t, "step-csi"); strings.Contains(text, `namespace="metrics"`) {
			return fmt.Errorf("after the pod's deletion, the metrics are\n%s", text)
		}
		return nil
	})
}

// metricsOf returns the metrics of a pod of the plugin or the authority.
func metricsOf(t *testing.T, name string) string {
	t.Helper()
	pods := strings.Fields(kubectl(t, "-n", plugin, "get", "pods", "-l", "app.kubernetes.io/name="+name, "-o", "jsonpath={.items[*].metadata.name}"))
	if len(pods) == 0 {
		t.Fatalf("%s has no pod", name)
	}
	return kubectl(t, "get", "--raw", "/api/v1/namespaces/"+plugin+"/pods/"+pods[0]+":9808/proxy/metrics")
}

// monitoringKinds is the module with the CRDs of the Prometheus operator.
const monitoringKinds = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// installMonitoringKinds installs the CRDs PodMonitor and PrometheusRule.
func installMonitoringKinds(t *testing.T) {
	t.Helper()
	out, err := command("go", "mod", "download", "-json", monitoringKinds)
	must(t, err)
	var module struct{ Dir string }
	must(t, json.Unmarshal([]byte(out), &module))
	for _, kind := range []string{"podmonitors", "servicemonitors", "prometheusrules"} {
		kubectl(t, "apply", "--server-side", "-f", filepath.Join(module.Dir, "example/prometheus-operator-crd", "monitoring.coreos.com_"+kind+".yaml"))
		kubectl(t, "wait", "--for=condition=Established", "crd/"+kind+".monitoring.coreos.com", "--timeout=5m")
	}
}
