package payload_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os/exec"
	"slices"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// Every combination of key type and encoding that the attributes accept has the PEM type of
// its encoding. ReadKey returns the key that Encode encoded, although both wipe their buffers,
// and so does openssl, from PEM and from DER.
func TestEveryKeyEncoding(t *testing.T) {
	pod := issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid-1", ServiceAccount: "web", Node: "node-1"}
	config := attributes.Config{TrustDomain: names.Must(names.ParseTrustDomain("example.org")), Issuers: map[string]issuer.Lifetimes{"default": {}}}
	var accepted []string
	for _, keyType := range issuer.KeyTypes() {
		c := newCredential(t, keyType)
		public, err := x509.MarshalPKIXPublicKey(c.Key.Public())
		if err != nil {
			t.Fatal(err)
		}
		for encoding, kind := range map[string]string{"pkcs8": "PRIVATE KEY", "pkcs1": "RSA PRIVATE KEY", "sec1": "EC PRIVATE KEY"} {
			a, err := attributes.Parse(map[string]string{
				"key-type": string(keyType), "key-encoding": encoding, "privatekey-der-file": "tls.key.der",
			}, pod, "", config)
			if err != nil {
				continue
			}
			accepted = append(accepted, string(keyType)+" "+encoding)
			root := encode(t, c, a)
			if block, _ := pem.Decode(read(t, root, "tls.key")); block == nil || block.Type != kind {
				t.Errorf("%s in %s: the PEM block is %+v", keyType, encoding, block)
			}
			if got, err := payload.ReadKey(root, "tls.key"); err != nil || !isKey(got.Signer, c.Key) {
				t.Errorf("%s in %s: ReadKey returned another key; error %v", keyType, encoding, err)
			}
			for name, form := range map[string]string{"tls.key": "PEM", "tls.key.der": "DER"} {
				openssl := exec.Command("openssl", "pkey", "-inform", form, "-pubout", "-outform", "DER")
				openssl.Stdin = bytes.NewReader(read(t, root, name))
				if got, err := openssl.Output(); err != nil || !bytes.Equal(got, public) {
					t.Errorf("%s in %s: openssl reads another key from %s; error %v", keyType, encoding, name, err)
				}
			}
		}
	}
	slices.Sort(accepted)
	if want := []string{
		"ecdsa-p256 pkcs8", "ecdsa-p256 sec1", "ecdsa-p384 pkcs8", "ecdsa-p384 sec1", "ecdsa-p521 pkcs8", "ecdsa-p521 sec1", "ed25519 pkcs8",
		"rsa-2048 pkcs1", "rsa-2048 pkcs8", "rsa-3072 pkcs1", "rsa-3072 pkcs8", "rsa-4096 pkcs1", "rsa-4096 pkcs8",
	}; !slices.Equal(accepted, want) {
		t.Errorf("accepted: %q", accepted)
	}
}
