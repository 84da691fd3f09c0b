package attributes

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer"
)

// concernsTrust tells whether a volume with trust only can have the attribute.
func concernsTrust(key string) bool {
	switch key {
	case "issuer", "trust-only", "owner-uid", "fs-group", "file-mode", "privatekey-mode",
		"ca-file", "ca-directory", "pkcs12-truststore-file", "pkcs12-profile", "jks-truststore-file", "keystore-password-file":
		return true
	}
	return false
}

// finishTrustOnly rejects the attributes that concern a certificate or its key: a volume with
// trust only has neither. It removes their defaults.
func (p *parser) finishTrustOnly(values map[string]string) error {
	if others := slices.DeleteFunc(slices.Sorted(maps.Keys(values)), concernsTrust); len(others) > 0 {
		return fmt.Errorf("trust-only: a volume with trust only has no certificate and no private key, so that %s cannot apply; leave out %[1]s, or trust-only",
			strings.Join(others, ", "))
	}
	a := &p.result
	a.Request, a.KeyEncoding, a.Chain = issuer.Request{}, "", ""
	a.Files = a.Files.ofTrust()
	return nil
}

// ofTrust returns the names of the files that depend on the roots alone.
func (f Files) ofTrust() Files {
	return Files{
		CA: f.CA, CADirectory: f.CADirectory,
		PKCS12TrustStore: f.PKCS12TrustStore, JKSTrustStore: f.JKSTrustStore, KeyStorePassword: f.KeyStorePassword,
	}
}
