package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/crypto/x509roots/fallback/bundle"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/chartvalue"
)

// maxAdditionalRootsFile is the largest file with additional roots, in bytes. Half of it is
// enough for all publicly trusted roots.
const maxAdditionalRootsFile = 512 << 10

// anchorsFile is what an issuer adds to the roots of its CA, in the files of pods alone.
type anchorsFile struct {
	AdditionalRootsFile string `json:"additionalRootsFile"`
	PublicRoots         bool   `json:"publicRoots"`
}

// additionalRoots returns a function that reads the additional roots; nil if there are none.
// The file may change. The errors have its path.
func (f anchorsFile) additionalRoots(directory string) (func() ([]*x509.Certificate, error), error) {
	if f.AdditionalRootsFile == "" {
		return nil, nil
	}
	path := within(directory, f.AdditionalRootsFile)
	read := func() ([]*x509.Certificate, error) {
		roots, err := readAdditionalRoots(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", chartvalue.Beside("additionalRootsFile"), err)
		}
		return roots, nil
	}
	_, err := read()
	return read, err
}

func readAdditionalRoots(path string) ([]*x509.Certificate, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Size() > maxAdditionalRootsFile:
		return nil, fmt.Errorf("%s has %d bytes; %d are allowed, because each volume has a copy of the roots", path, info.Size(), maxAdditionalRootsFile)
	}
	data, err := readText(path)
	if err != nil {
		return nil, err
	}
	roots, err := issuer.ParseAdditionalRoots(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return roots, nil
}

// publicRoots returns the roots that Mozilla trusted for servers when the program was built:
// all nodes have the same, whatever their machines trust. It leaves out those that Mozilla
// trusts with constraints, which a file of roots cannot express.
func publicRoots() (all []*x509.Certificate, err error) {
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		certificate, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("the program's own roots: %w", err)
		}
		all = append(all, certificate)
	}
	return all, nil
}

// summary says what is added, for people.
func (f anchorsFile) summary() (text string) {
	if f.AdditionalRootsFile != "" {
		text += "; additional roots from " + f.AdditionalRootsFile
	}
	if f.PublicRoots {
		text += "; " + publicRootsMeaning
	}
	return text
}

const publicRootsMeaning = "public roots: servers that verify clients by ca.crt accept certificates of every public CA"

// warnPublicRoots warns about what publicRoots means for servers.
func (c *config) warnPublicRoots(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(c.issuers)) {
		if c.issuers[name].file.PublicRoots {
			klog.FromContext(ctx).Info("Warning: "+publicRootsMeaning+"; use this issuer for clients only, and another issuer for servers that verify their clients", "issuer", name)
		}
	}
}
