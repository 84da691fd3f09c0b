package attributes

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/migrate-cert-manager.md and the errors about the attributes of cert-manager's csi-driver
// say the same.
func TestMigrationFromCertManager(t *testing.T) {
	page, err := os.ReadFile("../../docs/migrate-cert-manager.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `("+regexp.QuoteMeta(certManager)+"[a-z0-9-]+)` \\| (none|`[a-z-]+`) \\|").FindAllStringSubmatch(string(page), -1)
	documented := map[string]bool{}
	for _, row := range rows {
		key, ours := row[1], strings.Trim(row[2], "`")
		documented[ours] = true
		want := "write " + ours
		if ours == "none" {
			want = "this driver has no such attribute; leave it out"
		} else if !slices.Contains(Keys(), ours) {
			t.Errorf("the page names the attribute %q, which does not exist", ours)
		}
		if got := suggestion(key, Keys()); !strings.Contains(got, want) {
			t.Errorf("the page says %s for %s, and the error %q", ours, key, got)
		}
	}
	for _, key := range Keys() {
		if _, same := strings.CutPrefix(suggestion(certManager+key, Keys()), ": write "+key+","); same && !documented[key] &&
			!slices.Contains([]string{"issuer", "service-names", "email-sans", "organizational-units", "street-addresses", "postal-codes", "template-data", "spiffe", "key-type", "file-mode", "revoke-on-delete"}, key) {
			t.Errorf("the page does not have %s", certManager+key)
		}
	}
	if len(rows) < 20 {
		t.Errorf("the page has %d rows with attributes", len(rows))
	}
}
