// Package image builds the image as `make image BASE=local` does, and looks into
// it. It needs root, and what `make e2e`, which runs it, installs.
package image
