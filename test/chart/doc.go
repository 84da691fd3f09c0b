// Package chart tests the Helm chart, its examples, and the files that `make generate`
// makes from the chart. It uses helm and step-csi's own parser.
package chart
