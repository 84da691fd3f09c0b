package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// spiffeIDPattern is a SPIFFE ID with a path, but for segments that are dots, by
// https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#2-spiffe-identity.
var spiffeIDPattern = regexp.MustCompile(`^spiffe://[a-z0-9._-]{1,255}(/[a-zA-Z0-9._-]+)+$`)

// maxSPIFFEID is the longest that all implementations accept, in bytes.
const maxSPIFFEID = 2048

// svid returns the SPIFFE ID of a leaf that is an X.509-SVID. Otherwise, the
// error says why it is none. It does not verify the leaf's chain, nor the
// extended key usages. See
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md.
func svid(leaf *x509.Certificate) (string, error) {
	switch {
	case len(leaf.URIs) == 0:
		return "", errors.New("it has no URI, and so no SPIFFE ID")
	case len(leaf.URIs) > 1:
		return "", fmt.Errorf("it has %d URIs; the SPIFFE ID must be the only one", len(leaf.URIs))
	case leaf.IsCA:
		return "", errors.New("it is a CA's")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "", errors.New("its key usage has keyCertSign or cRLSign, which are for CAs")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "", errors.New("its key usage lacks digitalSignature")
	}
	id := leaf.URIs[0].String()
	if !isSPIFFEID(id) {
		return "", fmt.Errorf("its URI %s is not a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/web", id)
	}
	return id, nil
}

func describeSVID(leaf *x509.Certificate) string {
	id, err := svid(leaf)
	if err != nil {
		return "no: " + err.Error()
	}
	return id
}

func isSPIFFEID(id string) bool {
	return len(id) <= maxSPIFFEID && spiffeIDPattern.MatchString(id) &&
		!strings.Contains(id+"/", "/./") && !strings.Contains(id+"/", "/../")
}
