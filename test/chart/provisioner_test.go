package chart

import (
	"path/filepath"
	"strings"
	"testing"
)

// The templates among the files are those that the documentation recommends, and which
// test/integration tries. The step-ca to try step-csi with has one of them.
func TestRecommendedTemplates(t *testing.T) {
	for file, page := range map[string]string{"base/step-csi.tpl": "provisioner.md", "subject.tpl": "subject.md"} {
		_, block, opened := strings.Cut(read(t, root+"/docs/"+page), "cat > "+filepath.Base(file)+" <<'END'\n")
		template, _, closed := strings.Cut(block, "END\n")
		if !opened || !closed || read(t, root+"/deploy/step-ca/"+file) != template {
			t.Errorf("deploy/step-ca/%s differs from the template in docs/%s:\n%s", file, page, template)
		}
	}
}
