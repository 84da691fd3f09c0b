package attributes

import (
	"cmp"
	"errors"

	"github.com/flexstack/step-csi/driver/keystore"
)

// finishKeyStores sets what the user has not set, and rejects attributes that have no effect.
func (a *Attributes) finishKeyStores() error {
	f := &a.Files
	switch {
	case a.PKCS12Profile != "" && f.PKCS12 == "" && f.PKCS12TrustStore == "":
		return errors.New("pkcs12-profile: the volume has no PKCS#12 file; set pkcs12-file or pkcs12-truststore-file, or leave it out")
	case a.KeyStoreAlias != "" && f.PKCS12 == "" && f.JKS == "":
		return errors.New("keystore-alias: the volume has no key store with a private key; set pkcs12-file or jks-file, or leave it out")
	case f.KeyStorePassword != "" && !f.HasKeyStore():
		return errors.New("keystore-password-file: the volume has no key store; set pkcs12-file, pkcs12-truststore-file, jks-file or jks-truststore-file, or leave it out")
	}
	if f.PKCS12 != "" || f.PKCS12TrustStore != "" {
		a.PKCS12Profile = cmp.Or(a.PKCS12Profile, keystore.Modern)
	}
	if f.PKCS12 != "" || f.JKS != "" {
		a.KeyStoreAlias = cmp.Or(a.KeyStoreAlias, "certificate")
	}
	if f.HasKeyStore() {
		f.KeyStorePassword = cmp.Or(f.KeyStorePassword, "keystore-password")
	}
	return nil
}

func parseAlias(value string) (string, error) { return value, keystore.CheckAlias(value) }
