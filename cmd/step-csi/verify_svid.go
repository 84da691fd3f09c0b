package main

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// svid returns the SPIFFE ID of a leaf that is an X.509-SVID. Otherwise, the error
// says why the leaf is not an X.509-SVID. svid does not verify the chain or the
// extended key usages. See
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md.
func svid(leaf *x509.Certificate) (string, error) {
	switch {
	case len(leaf.URIs) == 0:
		return "", errors.New("it has no URI, so no SPIFFE ID")
	case len(leaf.URIs) > 1:
		return "", fmt.Errorf("it has %d URIs; the SPIFFE ID must be the only one", len(leaf.URIs))
	case leaf.IsCA:
		return "", errors.New("it is a CA certificate")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "", errors.New("its key usage has keyCertSign or cRLSign, which are for CAs")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "", errors.New("its key usage lacks digitalSignature")
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err == nil && id.Path() == "" {
		err = errors.New("it has no path")
	}
	if err != nil {
		return "", fmt.Errorf("its URI %s is not a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/web: %w", leaf.URIs[0], err)
	}
	return id.String(), nil
}

func describeSVID(leaf *x509.Certificate) string {
	id, err := svid(leaf)
	if err != nil {
		return "no: " + err.Error()
	}
	return id
}
