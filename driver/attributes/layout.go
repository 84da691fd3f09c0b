package attributes

import (
	"errors"
	"fmt"
	"strings"
)

// Layout is a set of file names, and what is true of the files.
type Layout string

// SPIFFELayout has the names of https://github.com/spiffe/spiffe-helper, and those of the
// draft https://github.com/spiffe/spiffe/pull/376, "SPIFFE Filesystem Delivery". The draft
// asks for a key in PKCS#8, and for the whole chain without its root.
const (
	DefaultLayout Layout = "default"
	SPIFFELayout  Layout = "spiffe"
)

// spiffeBundleSuffix follows the trust domain in the name of a trust bundle.
const spiffeBundleSuffix = ".spiffe-trust-bundle.pem"

// finishLayout names the files that the user has not named.
func (p *parser) finishLayout(values map[string]string) error {
	if p.layout != SPIFFELayout {
		return nil
	}
	a := &p.result
	switch {
	case !p.spiffe:
		return errors.New(`spiffe: layout: spiffe is for certificates with the pod's SPIFFE ID; leave out spiffe: "false", or leave out layout`)
	case a.KeyEncoding != PKCS8:
		return fmt.Errorf("key-encoding: layout: spiffe is for keys in pkcs8; leave out key-encoding: %s, or leave out layout", a.KeyEncoding)
	case a.Chain != FullChain:
		return fmt.Errorf("chain: layout: spiffe is for the full chain; leave out chain: %s, or leave out layout", a.Chain)
	}
	usual := map[string]string{
		"certificate-file":   "svid.pem",
		"privatekey-file":    "svid_key.pem",
		"ca-file":            "svid_bundle.pem",
		"spiffe-bundle-file": p.config.TrustDomain.Name() + spiffeBundleSuffix,
		"bundle-file":        "credential-bundle.private-key.pem",
	}
	for _, file := range a.Files.attributes() {
		name, named := usual[file.key]
		if _, given := values[file.key]; !named || given {
			continue
		}
		if err := set(file.name, parseFileName)(name); err != nil {
			return fmt.Errorf("layout: the usual name of %s: %w; set %[1]s", file.key, err)
		}
	}
	return nil
}

// checkLayout checks the names of the certificate.
func (p *parser) checkLayout() error {
	uris := p.result.Request.URIs
	if p.layout != SPIFFELayout || len(uris) == 1 {
		return nil
	}
	var others []string
	for _, uri := range uris[1:] {
		others = append(others, uri.String())
	}
	return fmt.Errorf("uri-sans: layout: spiffe is for X.509-SVIDs, which have the SPIFFE ID as their only URI; leave out %s, or leave out layout",
		strings.Join(others, ", "))
}
