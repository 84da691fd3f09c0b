package main

import (
	"bytes"
	"strings"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer/policy"
)

// A list of validations replaces the default one. With only a rule about organizations, there
// is a warning that any pod can have any name; with the default policy, there is none.
func TestWarningOfUnrestrictedNames(t *testing.T) {
	var complete string
	for _, v := range policy.Default() {
		complete += "  - expression: |\n      " + strings.ReplaceAll(v.Expression, "\n", "\n      ") + "\n"
	}
	common, _, _ := strings.Cut(valid, "  validations:")
	for name, test := range map[string]struct{ validations, want string }{
		"default policy":    {"", ""},
		"the same list":     {"  validations:\n" + complete, ""},
		"all but addresses": {"  validations:\n" + strings.ReplaceAll(complete, "request.ipAddresses.size() == 0", "true"), "no validation mentions request.ipAddresses, so"},
		"organizations alone": {"  allowSubjectFields: [organizations]\n  validations: [{expression: request.organizations.size() < 2}]\n",
			"Warning: no validation mentions request.commonName, request.dnsNames, request.ipAddresses, request.uris, request.emailAddresses, so any pod can have any value; " +
				"the validations of the configuration replace the default policy: add its validations"},
	} {
		c, err := loadConfig(write(t, common+test.validations), (*configFile).node)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var log bytes.Buffer
		c.warnUnrestricted(klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log)))))
		c.close()
		if got := log.String(); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
			t.Errorf("%s: want %q in the log:\n%s", name, test.want, got)
		}
	}
}
