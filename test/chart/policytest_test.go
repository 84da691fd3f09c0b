package chart

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/flexstack/step-csi/cmd/kubectl-step_csi/policytest"
	"github.com/flexstack/step-csi/issuer"
)

// "kubectl step-csi policy test" says the same of the chart's values as of the configuration
// that the chart makes of them.
func TestPolicyTestIsAboutTheRenderedConfiguration(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open.yaml")
	if err := os.WriteFile(open, []byte("policy: {validations: [{expression: 'true'}]}\nissuers: {default: {policy: null}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	requests := []map[string]string{
		{"service-names": "orders"},
		{"dns-names": "orders.shop,a.example.com"},
		{"dns-names": "step-certificates.step-ca.svc"},
		{"dns-names": "step-csi-ra.step-ca"},
		{"dns-names": "*.step-ca.svc"},
		{"ip-sans": "192.0.2.1"},
		{"organizations": "shop"},
		{"template-data": "{}"},
		{"common-name": "admin", "duration": "11h"},
		{"duration": "200h"},
		{"issuer": "edge", "dns-names": "a.example.com"},
		{"issuer": "edge", "dns-names": "a.shop"},
		{"issuer": "second", "dns-names": "a.shop", "ip-sans": "192.0.2.1"},
	}
	var allowed, denied atomic.Int32
	t.Run("values", func(t *testing.T) {
		for _, file := range append(valueFiles(t), os.DevNull, open, "testdata/no-default.yaml") {
			for mode, workload := range map[string]string{"ra": "ra/Deployment", "node": "DaemonSet"} {
				for _, release := range []string{"step-csi", "certs"} {
					t.Run(filepath.Base(file)+"/"+mode+"/"+release, func(t *testing.T) {
						t.Parallel()
						// A registration authority of its own, whose configuration there is.
						own := filepath.Join(t.TempDir(), "own.yaml")
						if err := os.WriteFile(own, []byte("{mode: "+mode+", ra: {existing: {release: ''}}}"), 0o600); err != nil {
							t.Fatal(err)
						}
						text, err := templateOf(release, "step-ca", "--values", file, "--values", own)
						if err != nil {
							t.Fatal(err)
						}
						rendered := filepath.Join(t.TempDir(), "step-csi.yaml")
						if err := os.WriteFile(rendered, []byte(configAnnotation(t, objects(t, text)[workload])), 0o600); err != nil {
							t.Fatal(err)
						}
						for _, request := range requests {
							verdict := func(files ...string) policytest.Verdict {
								all, err := policytest.Evaluate(t.Context(), policytest.Options{
									Files: files, Release: policytest.Release{Name: release, Namespace: "step-ca"}, Attributes: request,
									Pod: issuer.Pod{Namespace: "shop", ServiceAccount: "orders", UID: "00000000-0000-4000-8000-000000000000"},
								}, strings.NewReader(""))
								if err != nil {
									t.Fatal(err)
								}
								return all[0]
							}
							ofValues, ofConfiguration := verdict(file, own), verdict(rendered)
							// Only the chart knows the URL of the registration authority.
							if before, after, found := strings.Cut(ofValues.Event, "registration authority https://"); found {
								_, reason, _ := strings.Cut(after, ": denied: ")
								ofValues.Event = before + "denied: " + reason
							}
							if !reflect.DeepEqual(ofValues, ofConfiguration) {
								t.Errorf("%q:\nof the values: %+v\nof the configuration: %+v", request, ofValues, ofConfiguration)
							}
							if ofValues.Allowed {
								allowed.Add(1)
							} else {
								denied.Add(1)
							}
						}
					})
				}
			}
		}
	})
	if allowed.Load() < 50 || denied.Load() < 50 {
		t.Errorf("%d requests are allowed, %d denied: both have to be compared", allowed.Load(), denied.Load())
	}
}
