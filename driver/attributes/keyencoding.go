package attributes

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer"
)

// KeyEncoding is the ASN.1 structure of a private key's file.
type KeyEncoding string

// PKCS8 is for keys of all types, PKCS1 only for RSA and SEC1 only for ECDSA.
const (
	PKCS8 KeyEncoding = "pkcs8"
	PKCS1 KeyEncoding = "pkcs1"
	SEC1  KeyEncoding = "sec1"
)

// keyEncodings returns the encodings of keys of the type.
func keyEncodings(t issuer.KeyType) []KeyEncoding {
	switch family, _, _ := strings.Cut(string(t), "-"); family {
	case "rsa":
		return []KeyEncoding{PKCS8, PKCS1}
	case "ecdsa":
		return []KeyEncoding{PKCS8, SEC1}
	}
	return []KeyEncoding{PKCS8}
}

// checkKeyEncoding returns an error if the encoding is not one of those of the key's type.
func (a *Attributes) checkKeyEncoding() error {
	allowed := keyEncodings(a.Request.KeyType)
	if slices.Contains(allowed, a.KeyEncoding) {
		return nil
	}
	kind := map[KeyEncoding]string{PKCS1: "RSA", SEC1: "ECDSA"}[a.KeyEncoding]
	use := string(allowed[0])
	if len(allowed) > 1 {
		use += " or " + string(allowed[1])
	}
	return fmt.Errorf("key-encoding: %s is for %s keys, and key-type is %s; use %s", a.KeyEncoding, kind, a.Request.KeyType, use)
}
