package attributes

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// certManagerKeys are the attributes of cert-manager's csi-driver, without the prefix. See
// https://cert-manager.io/docs/usage/csi-driver/#supported-volume-attributes.
var certManagerKeys = []string{
	"issuer-name", "issuer-kind", "issuer-group", "common-name", "literal-subject", "dns-names", "ip-sans", "uri-sans",
	"organizations", "organizationalunits", "countries", "provinces", "localities", "streetaddresses", "postalcodes", "serialnumber",
	"duration", "renew-before", "is-ca", "key-usages", "key-encoding", "key-algorithm", "key-size", "reuse-private-key",
	"certificate-file", "privatekey-file", "ca-file", "fs-group", "pkcs12-enable", "pkcs12-filename", "pkcs12-password",
}

// docs/migrate-cert-manager.md and the errors about the attributes of cert-manager's csi-driver
// say the same.
func TestMigrationFromCertManager(t *testing.T) {
	page, err := os.ReadFile("../../docs/migrate-cert-manager.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `("+regexp.QuoteMeta(certManager)+"[a-z0-9-]+)` \\| (none|`[a-z0-9-]+`) \\|").FindAllStringSubmatch(string(page), -1)
	for _, row := range rows {
		key, ours := row[1], strings.Trim(row[2], "`")
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
	for _, key := range certManagerKeys {
		if !slices.ContainsFunc(rows, func(row []string) bool { return row[1] == certManager+key }) {
			t.Errorf("the page does not have %s", certManager+key)
		}
	}
}
