package attributes_test

import (
	"reflect"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/keystore"
)

// trustOnly are all attributes that a volume with trust only can have.
func trustOnly() map[string]string {
	return map[string]string{
		"trust-only": "true", "issuer": "short", "ca-file": "roots.pem", "ca-directory": "roots",
		"owner-uid": "1000", "fs-group": "3000", "file-mode": "0440", "privatekey-mode": "0400",
		"pkcs12-truststore-file": "roots.p12", "pkcs12-profile": "legacy", "jks-truststore-file": "roots.jks", "keystore-password-file": "password",
	}
}

// A volume with trust only has the files of the roots, and no request.
func TestTrustOnly(t *testing.T) {
	group := 3000
	got, err := attributes.Parse(trustOnly(), pod, "2000", config())
	want := attributes.Attributes{
		Issuer: "short", TrustOnly: true, Files: attributes.Files{
			CA: "roots.pem", CADirectory: "roots", PKCS12TrustStore: "roots.p12", JKSTrustStore: "roots.jks", KeyStorePassword: "password",
		},
		PKCS12Profile: keystore.Legacy,
		Owner:         1000, Group: &group, Mode: 0o440, PrivateKeyMode: 0o400,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want\n%+v", got, err, want)
	}
	got, err = attributes.Parse(map[string]string{"trust-only": "true"}, pod, "2000", config())
	want = attributes.Attributes{Issuer: "default", TrustOnly: true, Files: attributes.Files{CA: "ca.crt"}, Mode: 0o440, PrivateKeyMode: 0o440}
	if got.Group, want.Group = nil, nil; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("defaults: %+v, %v", got, err)
	}
}

// All other attributes are refused by name beside it, and so is an unknown issuer.
func TestTrustOnlyWithOtherAttributes(t *testing.T) {
	full := fullRequest()
	for _, key := range attributes.Keys() {
		if _, allowed := trustOnly()[key]; allowed {
			continue
		}
		_, err := attributes.Parse(map[string]string{"trust-only": "true", key: full[key]}, pod, "", config())
		wantError(t, key, err, "trust-only: a volume with trust only has no certificate and no private key, so that "+key+" cannot apply; leave out "+key+", or trust-only")
	}
	_, err := attributes.Parse(map[string]string{"trust-only": "true", "key-type": "rsa-2048", "dns-names": "a.b"}, pod, "", config())
	wantError(t, "two", err, "so that dns-names, key-type cannot apply; leave out dns-names, key-type, or trust-only")
	_, err = attributes.Parse(map[string]string{"trust-only": "true", "issuer": "other"}, pod, "", config())
	wantError(t, "unknown issuer", err, `issuer: "other" is not an issuer`)
}
