package attributes_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
)

// A mode that keeps the files from the pod's user is warned about, with what to set.
func TestModeWarning(t *testing.T) {
	for _, test := range []struct {
		mode, fsGroup, owner, keyMode string
		want                          []string // parts of the warning; none means no warning
	}{
		{"", "", "", "", nil},
		{"", "1000", "", "", nil},
		{"0444", "", "", "", nil},
		{"0404", "", "", "", nil},
		{"0440", "1000", "", "", nil},
		{"0444", "1000", "", "", nil},
		{"0400", "1000", "", "", []string{`file-mode: "0400" lets only root read`, "group 1000", `set file-mode: "0440"`}},
		// The group's members do not get the permissions of others.
		{"0404", "1000", "", "", []string{`file-mode: "0404" lets only root read`}},
		{"0400", "", "", "", []string{`file-mode: "0400" lets only root read`, "set owner-uid to this user, or fsGroup", "or leave out file-mode"}},
		{"0440", "", "", "", []string{`file-mode: "0440" lets only root and the group 0 read`, "fsGroup in the pod's securityContext"}},
		{"", "1000", "", "0400", []string{`privatekey-mode: "0400" lets only root read the private key (owner root, group 1000)`, `set privatekey-mode: "0440"`}},
		{"", "", "", "0440", []string{`privatekey-mode: "0440" lets only root and the group 0 read the private key`}},
		{"0400", "1000", "1000", "", nil},
		{"", "", "1000", "", nil},
		{"", "", "1000", "0600", nil},
		{"0400", "", "0", "", []string{`file-mode: "0400" lets only root read`}},
	} {
		values := map[string]string{"file-mode": test.mode, "owner-uid": test.owner, "privatekey-mode": test.keyMode}
		maps.DeleteFunc(values, func(_, value string) bool { return value == "" })
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
