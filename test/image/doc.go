// Package image builds both images as `make image BASE=local` does and checks their
// contents. It needs root and the packages that `make e2e`, which runs it, installs.
package image
