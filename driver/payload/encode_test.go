package payload_test

import (
	"crypto"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer"
)

// ReadKey returns the key that Encode encoded, although both wipe their buffers.
func TestReadKeyIsTheEncodedOne(t *testing.T) {
	for _, test := range []struct {
		keyType  issuer.KeyType
		encoding attributes.KeyEncoding
	}{
		{issuer.ECDSAP256, attributes.PKCS8},
		{issuer.ECDSAP521, attributes.SEC1},
		{issuer.Ed25519, attributes.PKCS8},
		{issuer.RSA2048, attributes.PKCS8},
		{issuer.RSA2048, attributes.PKCS1},
	} {
		key, err := test.keyType.Generate()
		if err != nil {
			t.Fatal(err)
		}
		a := attributes.Attributes{Files: attributes.Files{Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt"}, KeyEncoding: test.encoding}
		all, err := payload.Encode(&issuer.Credential{Key: key}, a, payload.Password{})
		if err != nil {
			t.Fatal(err)
		}
		root := openRoot(t)
		write(t, root, all)
		got, err := payload.ReadKey(root, a.Files.PrivateKey)
		if err != nil || !got.Signer.(interface{ Equal(crypto.PrivateKey) bool }).Equal(key.Signer) {
			t.Errorf("%s: ReadKey returned another key; error %v", test.keyType, err)
		}
	}
}
