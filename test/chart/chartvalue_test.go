package chart

import (
	"regexp"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/issuer/chartvalue"
)

// An error about a file of an issuer names the chart's value that fills it, and the chart has
// this value: a user of the chart never wrote the key.
func TestFilesAreNamedByTheirValues(t *testing.T) {
	templates, schema := read(t, chart+"/templates/_helpers.tpl"), read(t, chart+"/values.schema.json")
	found := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)setting: (\w+File)|^\s*(\w+File): issuers/`).FindAllStringSubmatch(templates, -1) {
		key := match[2]
		if match[1] != "" {
			key = "provisioner." + match[1]
		}
		found[key] = true
		_, value, named := strings.Cut(strings.TrimSuffix(chartvalue.Beside(key), ")"), key+" (in the chart: ")
		if !named || !strings.Contains(schema, `"`+value+`": {`) {
			t.Errorf("the chart fills %s, and errors name %q, which is no value of the chart", key, chartvalue.Beside(key))
		}
	}
	for _, key := range []string{"caBundleFile", "serverTLSBundleFile", "additionalRootsFile", "provisioner.passwordFile", "provisioner.keyFile", "provisioner.certificateFile", "provisioner.privateKeyFile"} {
		if !found[key] {
			t.Errorf("the templates have no %s", key)
		}
	}
	if got := chartvalue.Beside("provisioner.name"); got != "provisioner.name" {
		t.Errorf("a key that the chart has, too, is named %s", got)
	}
}
