package attributes

import (
	"fmt"
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

func (p *parser) setKeyType(value string) error {
	p.result.Request.KeyType = issuer.KeyType(value)
	return oneOf(issuer.KeyType(value), issuer.KeyTypes()...)
}

func (p *parser) setKeyEncoding(value string) error {
	p.result.KeyEncoding = KeyEncoding(value)
	return oneOf(p.result.KeyEncoding, PKCS8, PKCS1, SEC1)
}

func (a Attributes) checkEncoding() error {
	family, _, _ := strings.Cut(string(a.Request.KeyType), "-")
	switch {
	case a.KeyEncoding == PKCS1 && family != "rsa":
		return fmt.Errorf("key-encoding: pkcs1 is for RSA keys, and key-type is %s; use pkcs8", a.Request.KeyType)
	case a.KeyEncoding == SEC1 && family != "ecdsa":
		return fmt.Errorf("key-encoding: sec1 is for ECDSA keys, and key-type is %s; use pkcs8", a.Request.KeyType)
	}
	return nil
}
