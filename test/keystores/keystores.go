// Package keystores checks the key stores of a volume, by other code than that which writes
// them. It is for tests: a pod can make key stores that take very long to read.
package keystores

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"

	jks "github.com/pavlo-v-chernykh/keystore-go/v4"
	"go.step.sm/crypto/pemutil"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/flexstack/step-csi/driver/attributes"
)

// Check checks that all key stores in the directory open with the password, and have the same
// contents as the PEM files. If the password is empty, it is in the file for it.
func Check(directory *os.Root, files attributes.Files, alias, password string) error {
	if password == "" {
		text, err := directory.ReadFile(files.KeyStorePassword)
		if err != nil {
			return err
		}
		password = string(text)
	}
	roots, err := certificates(directory, files.CA)
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	var key crypto.PrivateKey
	if files.PrivateKey != "" {
		if chain, err = certificates(directory, files.Certificate); err != nil {
			return err
		}
		text, err := directory.ReadFile(files.PrivateKey)
		if err != nil {
			return err
		}
		if key, err = pemutil.ParseKey(text); err != nil {
			return err
		}
	}
	var problems []error
	for _, store := range []struct {
		name  string
		check func(data []byte) error
	}{
		{files.PKCS12, func(data []byte) error { return checkPKCS12(data, key, chain, password) }},
		{files.PKCS12TrustStore, func(data []byte) error {
			found, err := pkcs12.DecodeTrustStore(data, password)
			return errors.Join(err, same(found, roots))
		}},
		{files.JKS, func(data []byte) error { return checkJKS(data, key, chain, alias, password) }},
		{files.JKSTrustStore, func(data []byte) error { return checkJKSTrustStore(data, roots, password) }},
	} {
		if store.name == "" {
			continue
		}
		data, err := directory.ReadFile(store.name)
		if err == nil {
			err = store.check(data)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", store.name, err))
		}
	}
	return errors.Join(problems...)
}

func certificates(directory *os.Root, name string) ([]*x509.Certificate, error) {
	text, err := directory.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return pemutil.ParseCertificateBundle(text)
}

func checkPKCS12(data []byte, key crypto.PrivateKey, chain []*x509.Certificate, password string) error {
	foundKey, leaf, others, err := pkcs12.DecodeChain(data, password)
	if err != nil {
		return err
	}
	return errors.Join(sameKey(foundKey, key), same(append([]*x509.Certificate{leaf}, others...), chain))
}

func checkJKS(data []byte, key crypto.PrivateKey, chain []*x509.Certificate, alias, password string) error {
	store := jks.New()
	if err := store.Load(bytes.NewReader(data), []byte(password)); err != nil {
		return err
	}
	entry, err := store.GetPrivateKeyEntry(alias, []byte(password))
	if err != nil {
		return err
	}
	foundKey, err := x509.ParsePKCS8PrivateKey(entry.PrivateKey)
	if err != nil {
		return err
	}
	var found []*x509.Certificate
	for _, c := range entry.CertificateChain {
		certificate, err := x509.ParseCertificate(c.Content)
		if err != nil {
			return err
		}
		found = append(found, certificate)
	}
	return errors.Join(sameKey(foundKey, key), same(found, chain))
}

func checkJKSTrustStore(data []byte, roots []*x509.Certificate, password string) error {
	store := jks.New()
	if err := store.Load(bytes.NewReader(data), []byte(password)); err != nil {
		return err
	}
	var found []*x509.Certificate
	for _, alias := range store.Aliases() {
		entry, err := store.GetTrustedCertificateEntry(alias)
		if err != nil {
			return err
		}
		certificate, err := x509.ParseCertificate(entry.Certificate.Content)
		if err != nil {
			return err
		}
		found = append(found, certificate)
	}
	byContents := func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) }
	return same(slices.SortedFunc(slices.Values(found), byContents), slices.SortedFunc(slices.Values(roots), byContents))
}

func sameKey(found, want crypto.PrivateKey) error {
	if expected, ok := want.(interface{ Equal(crypto.PrivateKey) bool }); !ok || !expected.Equal(found) {
		return errors.New("another private key than in the PEM file")
	}
	return nil
}

func same(found, want []*x509.Certificate) error {
	if !slices.EqualFunc(found, want, (*x509.Certificate).Equal) {
		return fmt.Errorf("%d certificates, other than the %d in the PEM file", len(found), len(want))
	}
	return nil
}
