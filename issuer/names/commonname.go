package names

import (
	"fmt"
	"strings"
)

// maxCommonName is ub-common-name of RFC 5280, in bytes.
const maxCommonName = 64

// CommonName is the common name of a certificate's subject. It need not be a host
// name, and may have blanks, capitals and all printable Unicode. The zero value
// means that there is none.
type CommonName struct{ commonName string }

// String implements fmt.Stringer.
func (n CommonName) String() string { return n.commonName }

// FirstCommonName returns the first DNS name that is short enough for a common name.
func FirstCommonName(all []DNSName) (commonName CommonName, ok bool) {
	for _, dns := range all {
		if commonName, err := ParseCommonName(dns.String()); err == nil {
			return commonName, true
		}
	}
	return CommonName{}, false
}

// ParseCommonName changes nothing.
func ParseCommonName(text string) (CommonName, error) {
	switch {
	case text == "" || len(text) > maxCommonName:
		return CommonName{}, fmt.Errorf("%s does not have 1 to %d bytes (RFC 5280)", Quote(text), maxCommonName)
	case !IsPrintable(text):
		return CommonName{}, fmt.Errorf("%s contains characters that are not printable", Quote(text))
	case strings.TrimSpace(text) != text:
		return CommonName{}, fmt.Errorf("%s: leave out the blanks at the ends", Quote(text))
	}
	return CommonName{text}, nil
}
