// Package chart tests the Helm chart, its examples, and what is generated from
// it (see `make generate`), with helm itself and with step-csi's own parser.
package chart
