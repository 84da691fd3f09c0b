package attributes_test

import (
	"slices"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
)

// keyEncodings has every combination of key-type and key-encoding, with the error of those
// that do not make sense.
var keyEncodings = []struct {
	keyType issuer.KeyType
	pkcs8   string
	pkcs1   string
	sec1    string
}{
	{issuer.ECDSAP256, "", "key-encoding: pkcs1 is for RSA keys, and key-type is ecdsa-p256; use pkcs8 or sec1", ""},
	{issuer.ECDSAP384, "", "key-encoding: pkcs1 is for RSA keys, and key-type is ecdsa-p384; use pkcs8 or sec1", ""},
	{issuer.ECDSAP521, "", "key-encoding: pkcs1 is for RSA keys, and key-type is ecdsa-p521; use pkcs8 or sec1", ""},
	{issuer.Ed25519, "", "key-encoding: pkcs1 is for RSA keys, and key-type is ed25519; use pkcs8", "key-encoding: sec1 is for ECDSA keys, and key-type is ed25519; use pkcs8"},
	{issuer.RSA2048, "", "", "key-encoding: sec1 is for ECDSA keys, and key-type is rsa-2048; use pkcs8 or pkcs1"},
	{issuer.RSA3072, "", "", "key-encoding: sec1 is for ECDSA keys, and key-type is rsa-3072; use pkcs8 or pkcs1"},
	{issuer.RSA4096, "", "", "key-encoding: sec1 is for ECDSA keys, and key-type is rsa-4096; use pkcs8 or pkcs1"},
}

func TestKeyEncodings(t *testing.T) {
	var types []issuer.KeyType
	for _, c := range keyEncodings {
		types = append(types, c.keyType)
		for encoding, want := range map[attributes.KeyEncoding]string{attributes.PKCS8: c.pkcs8, attributes.PKCS1: c.pkcs1, attributes.SEC1: c.sec1} {
			got, err := attributes.Parse(map[string]string{"key-type": string(c.keyType), "key-encoding": string(encoding)}, pod, "", config())
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != want || err == nil && (got.Request.KeyType != c.keyType || got.KeyEncoding != encoding) {
				t.Errorf("%s in %s: %s in %s, error %q; want %q", c.keyType, encoding, got.Request.KeyType, got.KeyEncoding, text, want)
			}
		}
	}
	if !slices.Equal(types, issuer.KeyTypes()) {
		t.Errorf("the table has the types %q", types)
	}
}
