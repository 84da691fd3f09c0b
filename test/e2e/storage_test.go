//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// driverDefinition describes step-csi to Kubernetes' external storage suite. The suite
// starts pods with two volumes, and two pods, only if the volumes are not ReadOnly. With
// Shared, it does not write to them.
const driverDefinition = `DriverInfo:
  Name: ` + driverName + `
  SupportedFsType: {"": {}}
Timeouts: {PodStartSlow: 3m}
InlineVolumes:
- Attributes: {service-names: storage-suite}
  Shared: true
  ReadOnly: false
`

// Kubernetes' own external storage suite passes: all that it tests of inline volumes, but
// for the writable ones, which step-csi does not have. Its volumes do not have
// csi.readOnly.
func storageSuite(t *testing.T) {
	suite, err := tool("suite")
	must(t, err)
	suite = strings.TrimSpace(suite)
	// The suite's pods use busybox by a name and version of their own.
	known, err := command(suite, "-list-images")
	must(t, err)
	names := regexp.MustCompile(`\S+/busybox:\S+`).FindAllString(known, -1)
	if len(names) == 0 {
		t.Fatalf("the suite knows no image of busybox:\n%s", known)
	}
	_, err = tool(append([]string{"exec", "ctr", "-n", "k8s.io", "images", "tag", "--force", "docker.io/library/busybox:1.37"}, names...)...)
	must(t, err)
	definition := filepath.Join(t.TempDir(), "driver.yaml")
	must(t, os.WriteFile(definition, []byte(driverDefinition), 0o644))
	config := ""
	for _, variable := range cluster.env {
		if value, ok := strings.CutPrefix(variable, "KUBECONFIG="); ok {
			config = value
		}
	}
	out, err := command(suite, "-kubeconfig", config, "-storage.testdriver", definition, "-ginkgo.no-color",
		"-ginkgo.focus", "CSI Ephemeral-volume", "-ginkgo.skip", "should create read/write inline ephemeral volume")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	result := regexp.MustCompile(`Ran \d+ of \d+ Specs[^\n]*\n[^\n]*`).FindString(out)
	if !strings.HasPrefix(result, "Ran 3 of ") || !strings.Contains(result, "3 Passed | 0 Failed") {
		t.Errorf("the suite ran other specs than its three for read-only volumes: %q\n%s", result, out)
	}
	fmt.Printf("    %s\n", strings.ReplaceAll(result, "\n", ": "))
}
