package chart

import (
	"strings"
	"testing"
)

// The step-ca to try step-csi with has the certificate template that the documentation
// recommends, and which test/integration tries.
func TestRecommendedTemplate(t *testing.T) {
	_, block, opened := strings.Cut(read(t, root+"/docs/provisioner.md"), "cat > step-csi.tpl <<'END'\n")
	template, _, closed := strings.Cut(block, "END\n")
	if !opened || !closed || read(t, root+"/deploy/step-ca/base/step-csi.tpl") != template {
		t.Errorf("deploy/step-ca/base/step-csi.tpl differs from the template in docs/provisioner.md:\n%s", template)
	}
}
