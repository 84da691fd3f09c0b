// Package e2e tests step-csi in a real Kubernetes, with helm and kubectl: the image, the
// chart, the examples and a step-ca. `make e2e` runs all scenarios, and
// `make e2e SCENARIO=rotation` runs one.
package e2e
