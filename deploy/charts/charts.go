// Package charts has the defaults of the Helm chart.
package charts

import _ "embed"

// Defaults has the default of each value of the chart, in YAML, by the value's path with dots,
// such as "policy.allowShortNames".
//
//go:embed step-csi/defaults.yaml
var Defaults []byte
