package payload_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/test/keystores"
)

// choice is an attribute with some of its values.
type choice struct {
	key    string
	values []string
}

// formatChoices are the attributes that decide which files a volume has, and what is in them.
func formatChoices() []choice {
	var keyTypes []string
	for _, keyType := range issuer.KeyTypes() {
		keyTypes = append(keyTypes, string(keyType))
	}
	return []choice{
		{"key-type", keyTypes},
		{"key-encoding", []string{"pkcs8", "pkcs1", "sec1"}},
		{"chain", []string{"leaf", "full", "full-with-root"}},
		{"certificate-file", []string{"cert.pem", "tls.key"}},
		{"privatekey-file", []string{"key.pem", "ca.crt"}},
		{"ca-file", []string{"roots.pem", "keystore-password"}},
		{"bundle-file", []string{"bundle.pem", "tls.crt"}},
		{"certificate-der-file", []string{"cert.der", "bundle.pem"}},
		{"privatekey-der-file", []string{"key.der", "cert.der"}},
		{"pkcs12-file", []string{"keystore.p12", "keystore"}},
		{"pkcs12-truststore-file", []string{"truststore.p12", "keystore"}},
		{"jks-file", []string{"keystore.jks", "keystore"}},
		{"jks-truststore-file", []string{"truststore.jks", "keystore"}},
		{"pkcs12-profile", []string{"modern", "legacy"}},
		{"keystore-alias", []string{"web", "a b"}},
		{"keystore-password-file", []string{"password", "tls.crt"}},
	}
}

// The files of each combination of attributes that is accepted are complete, can be read, and
// are about the same certificate.
func FuzzFormats(f *testing.F) {
	choices := formatChoices()
	for _, key := range attributes.Keys() {
		if strings.HasSuffix(key, "-file") && !slices.ContainsFunc(choices, func(c choice) bool { return c.key == key }) {
			f.Errorf("formatChoices lacks %s", key)
		}
	}
	credentials := map[issuer.KeyType]*issuer.Credential{}
	for _, keyType := range issuer.KeyTypes() {
		credentials[keyType] = newCredential(f, keyType)
	}
	// Each byte chooses a value, or none.
	usual := make([]byte, len(choices))
	f.Add(usual)
	f.Add(slices.Repeat([]byte{1}, len(choices)))
	for i, c := range choices {
		for value := range c.values {
			seed := slices.Clone(usual)
			seed[i] = byte(value + 1)
			f.Add(seed)
			for j, other := range choices {
				if strings.HasPrefix(other.key, "pkcs12-") || strings.HasPrefix(other.key, "jks-") {
					seed[j] = max(seed[j], 1)
				}
			}
			f.Add(seed)
		}
	}
	f.Fuzz(func(t *testing.T, chosen []byte) {
		values := map[string]string{}
		for i, c := range choices {
			if i < len(chosen) && chosen[i] > 0 {
				values[c.key] = c.values[int(chosen[i]-1)%len(c.values)]
			}
		}
		a, err := attributes.Parse(values, issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid-1", ServiceAccount: "web", Node: "node-1"}, "",
			attributes.Config{TrustDomain: names.Must(names.ParseTrustDomain("example.org")), Issuers: map[string]issuer.Lifetimes{"default": {}}})
		if err != nil {
			return
		}
		all, err := payload.Encode(credentials[a.Request.KeyType], a, password())
		if err != nil {
			t.Fatalf("%v: %v", values, err)
		}
		root := openRoot(t)
		if err := payload.Write(root, all, payload.AccessOf(a)); err != nil {
			t.Fatalf("%v: %v", values, err)
		}
		if got, want := visibleNames(t, root), slices.Sorted(slices.Values(a.Files.All())); !slices.Equal(got, want) {
			t.Errorf("%v: the volume has the files %q, want %q", values, got, want)
		}
		contents, err := volume.Check(root, a.Files)
		if err != nil || !contents.Leaf.Equal(credentials[a.Request.KeyType].Leaf()) || len(contents.Intermediates) != 1 {
			t.Fatalf("%v: %v", values, err)
		}
		if a.Files.HasKeyStore() {
			if err := keystores.Check(root, a.Files, a.KeyStoreAlias, "changeit"); err != nil {
				t.Errorf("%v: %v", values, err)
			}
		}
		for key, value := range values {
			if strings.HasSuffix(key, "-file") && !slices.Contains(a.Files.All(), value) {
				t.Errorf("%v: no file %s", values, value)
			}
		}
	})
}
