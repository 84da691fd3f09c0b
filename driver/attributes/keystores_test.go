package attributes_test

import (
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/keystore"
)

func TestKeyStores(t *testing.T) {
	for _, c := range []struct {
		values                       map[string]string
		passwordFile, alias, profile string
		wrong                        string
	}{
		{values: nil},
		{values: map[string]string{"pkcs12-file": "a"}, passwordFile: "keystore-password", alias: "certificate", profile: "modern"},
		{values: map[string]string{"pkcs12-truststore-file": "a"}, passwordFile: "keystore-password", profile: "modern"},
		{values: map[string]string{"jks-file": "a"}, passwordFile: "keystore-password", alias: "certificate"},
		{values: map[string]string{"jks-truststore-file": "a"}, passwordFile: "keystore-password"},
		{values: map[string]string{"pkcs12-file": "a", "pkcs12-profile": "legacy", "keystore-alias": "Web", "keystore-password-file": "b"},
			passwordFile: "b", alias: "Web", profile: "legacy"},
		{values: map[string]string{"jks-file": "a", "key-type": "ed25519"}, passwordFile: "keystore-password", alias: "certificate"},
		{values: map[string]string{"pkcs12-truststore-file": "a", "pkcs12-profile": "legacy", "key-type": "ed25519"}, passwordFile: "keystore-password", profile: "legacy"},
		{values: map[string]string{"pkcs12-file": "a", "pkcs12-profile": "legacy", "key-type": "ed25519"},
			wrong: "pkcs12-profile: no program that needs legacy reads a private key of the type ed25519; use modern, or another key-type"},
		{values: map[string]string{"pkcs12-truststore-file": "a", "keystore-alias": "web"}, wrong: "keystore-alias: the volume has no key store with a private key"},
		{values: map[string]string{"pkcs12-profile": "legacy"}, wrong: "pkcs12-profile: the volume has no PKCS#12 file; set pkcs12-file or pkcs12-truststore-file, or leave it out"},
		{values: map[string]string{"keystore-alias": "web"}, wrong: "keystore-alias: the volume has no key store with a private key; set pkcs12-file or jks-file, or leave it out"},
		{values: map[string]string{"keystore-password-file": "b"}, wrong: "keystore-password-file: the volume has no key store; set pkcs12-file, pkcs12-truststore-file, jks-file or jks-truststore-file, or leave it out"},
		{values: map[string]string{"pkcs12-file": "keystore-password"}, wrong: `pkcs12-file and keystore-password-file are both "keystore-password"`},
		{values: map[string]string{"jks-file": "a", "pkcs12-profile": "modern"}, wrong: "pkcs12-profile: the volume has no PKCS#12 file"},
	} {
		a, err := attributes.Parse(c.values, pod, "", config())
		if c.wrong != "" {
			wantError(t, c.wrong, err, c.wrong)
			continue
		}
		if err != nil || a.Files.KeyStorePassword != c.passwordFile || a.KeyStoreAlias != c.alias || a.PKCS12Profile != keystore.Profile(c.profile) ||
			a.Files.HasKeyStore() != (c.passwordFile != "") {
			t.Errorf("%v: %+v, %v", c.values, a, err)
		}
	}
}

// A password in the pod's spec is rejected with the explanation. The error never has its value.
func TestNoPasswordInTheSpec(t *testing.T) {
	const secret = "s3cret-of-the-pod"
	for _, key := range []string{
		"keystore-password", "keystorePassword", "pkcs12-password", "jks-password", "truststore-password", "password", "keystore-passwd",
		"passphrase", "storepass", "csi.cert-manager.io/pkcs12-password",
	} {
		_, err := attributes.Parse(map[string]string{key: secret, "pkcs12-file": "keystore.p12"}, pod, "", config())
		wantError(t, key, err, "everybody who can read the pod could read the password: the node plugin generates one and writes it to the file keystore-password in the volume; "+
			"to choose it, put it into a Secret under the key keystore-password, and name the Secret in nodePublishSecretRef")
		if err != nil && (strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), key)) {
			t.Errorf("%s: %v", key, err)
		}
	}
	_, err := attributes.Parse(map[string]string{"keystore-passwordfile": "a"}, pod, "", config())
	wantError(t, "a similar key", err, "keystore-password-file is")
}
