package main

import (
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/trust"
)

// The values of serverTLS. Without one, the roots of the CA verify its server.
const (
	serverTLSSystem = "system" // publicly trusted roots
	serverTLSBundle = "bundle" // the roots in serverTLSBundleFile
)

// serverTLSFile says how to verify the server's certificate in TLS, if something in front
// of the CA, such as an ingress, has a certificate that the CA has not signed.
type serverTLSFile struct {
	ServerTLS           string `json:"serverTLS"`
	ServerTLSBundleFile string `json:"serverTLSBundleFile"`
}

// serverRoots returns the roots that verify the server, and nil if those of the CA do.
func (f serverTLSFile) serverRoots(directory string) (*x509.CertPool, error) {
	switch {
	case f.ServerTLS == serverTLSBundle && f.ServerTLSBundleFile == "":
		return nil, fmt.Errorf("%s: name the file with the roots that verify the server", chartvalue.Beside("serverTLSBundleFile"))
	case f.ServerTLS != serverTLSBundle && f.ServerTLSBundleFile != "":
		return nil, fmt.Errorf("%s: is for serverTLS: %s only", chartvalue.Beside("serverTLSBundleFile"), serverTLSBundle)
	}
	switch f.ServerTLS {
	case "":
		return nil, nil
	case serverTLSSystem:
		return systemRoots()
	case serverTLSBundle:
		path := within(directory, f.ServerTLSBundleFile)
		data, err := readText(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", chartvalue.Beside("serverTLSBundleFile"), err)
		}
		roots, err := trust.ParseBundle(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", chartvalue.Beside("serverTLSBundleFile"), path, err)
		}
		return trust.Pool(roots), nil
	}
	return nil, fmt.Errorf("serverTLS: %q is unknown; use %s or %s, or leave it out if the CA's own roots verify its server", f.ServerTLS, serverTLSSystem, serverTLSBundle)
}

// systemRoots returns the roots of the machine or, in an image without any, those that
// Mozilla trusted when the program was built.
func systemRoots() (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err == nil && !pool.Equal(x509.NewCertPool()) {
		return pool, nil
	}
	pool = x509.NewCertPool()
	for root := range bundle.Roots() {
		certificate, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("serverTLS: the program's own roots: %w", err)
		}
		if root.Constraint == nil {
			pool.AddCert(certificate)
		} else {
			pool.AddCertWithConstraint(certificate, root.Constraint)
		}
	}
	return pool, nil
}
