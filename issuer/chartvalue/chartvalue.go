// Package chartvalue knows which values of the Helm chart fill keys of the configuration
// that have other names. Error messages name both, because a user of the chart never
// wrote the key.
package chartvalue

// values are the chart's values, by the key of the configuration that each fills. Those of
// an issuer are below issuers.<name>, as its keys are. Keys that are not here have the same
// name in the chart, or the chart sets them by itself.
var values = map[string]string{
	"authority.limits.node":       "ra.limits.node",
	"authority.limits.pod":        "ra.limits.pod",
	"caBundleFile":                "caBundle",
	"serverTLSBundleFile":         "serverTLSBundle",
	"additionalRootsFile":         "additionalRoots",
	"roots.caBundleFile":          "caBundle",
	"provisioner.passwordFile":    "passwordSecret",
	"provisioner.keyFile":         "keySecret",
	"provisioner.certificateFile": "certificateSecret",
	"provisioner.privateKeyFile":  "certificateSecret",
}

// Beside returns the key, such as an issuer's provisioner.passwordFile, and beside it the
// value that fills it in the chart, if that has another name:
//
//	provisioner.passwordFile (in the chart: passwordSecret)
func Beside(key string) string {
	if value, other := values[key]; other {
		return key + " (in the chart: " + value + ")"
	}
	return key
}
