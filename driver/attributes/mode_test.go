package attributes_test

import (
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
)

// A mode that keeps the files from the pod's user is warned about, with what to set.
func TestModeWarning(t *testing.T) {
	for _, test := range []struct {
		mode, fsGroup string
		want          []string // parts of the warning; none means no warning
	}{
		{"", "", nil},
		{"", "1000", nil},
		{"0444", "", nil},
		{"0404", "", nil},
		{"0440", "1000", nil},
		{"0444", "1000", nil},
		{"0400", "1000", []string{`file-mode: "0400" lets only root read`, "group 1000", `set file-mode: "0440"`}},
		// The group's members do not get the permissions of others.
		{"0404", "1000", []string{`file-mode: "0404" lets only root read`}},
		{"0400", "", []string{`file-mode: "0400" lets only root read`, "set fsGroup", "or leave out file-mode"}},
		{"0440", "", []string{`file-mode: "0440" lets only root and the group 0 read`, "set fsGroup"}},
	} {
		values := map[string]string{}
		if test.mode != "" {
			values["file-mode"] = test.mode
		}
		parsed, err := attributes.Parse(values, pod, test.fsGroup, config())
		if err != nil {
			t.Fatal(err)
		}
		got := parsed.ModeWarning()
		if (got == "") != (test.want == nil) {
			t.Errorf("mode %q, fsGroup %q: %q", test.mode, test.fsGroup, got)
		}
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("mode %q, fsGroup %q: %q does not contain %q", test.mode, test.fsGroup, got, want)
			}
		}
	}
}
