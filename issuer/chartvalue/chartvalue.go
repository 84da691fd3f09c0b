// Package chartvalue knows which values of the Helm chart fill keys of the configuration
// that have other names. Error messages name both, because whoever uses the chart never
// wrote the key.
package chartvalue

// values are the values of an issuer, by the key of an issuer that each fills. The other
// keys of an issuer have the same name in the chart.
var values = map[string]string{
	"caBundleFile":                "caBundle",
	"serverTLSBundleFile":         "serverTLSBundle",
	"provisioner.passwordFile":    "passwordSecret",
	"provisioner.keyFile":         "keySecret",
	"provisioner.certificateFile": "certificateSecret",
	"provisioner.privateKeyFile":  "certificateSecret",
}

// Beside returns the key of an issuer, such as provisioner.passwordFile, and beside it the
// value that fills it in the chart, if that has another name:
//
//	provisioner.passwordFile (in the chart: passwordSecret)
func Beside(key string) string {
	if value, other := values[key]; other {
		return key + " (in the chart: " + value + ")"
	}
	return key
}
