// Package e2e runs step-csi in a real Kubernetes: the image, the chart, the
// examples and a step-ca, by helm and kubectl, as users do. `make e2e` runs it,
// `make e2e SCENARIO=rotation` one scenario of it.
package e2e
