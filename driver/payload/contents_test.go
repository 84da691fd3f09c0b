package payload_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// checkFiles checks that the files are exactly those that the attributes ask for, and what is
// in them.
func checkFiles(t *testing.T, values map[string]string, a attributes.Attributes, c *issuer.Credential, all []payload.File, password string) {
	t.Helper()
	chain := map[attributes.ChainLength][]*x509.Certificate{
		attributes.LeafOnly: c.Chain[:1], attributes.FullChain: c.Chain, attributes.WithRoot: {c.Chain[0], c.Chain[1], c.Roots.Own[1]},
	}[a.Chain]
	type kind struct {
		name   string
		secret bool
		check  func([]byte) error
	}
	kinds := []kind{
		{a.Files.Certificate, false, func(data []byte) error { return areCertificates(data, chain) }},
		{a.Files.PrivateKey, true, func(data []byte) error { return isPEMKey(data, a.KeyEncoding, c, nil) }},
		{a.Files.CA, false, func(data []byte) error { return areCertificates(data, c.Roots.All()) }},
		{a.Files.SPIFFEBundle, false, func(data []byte) error { return areCertificates(data, issuer.Roots{Own: c.Roots.Own}.All()) }},
		{a.Files.Bundle, true, func(data []byte) error { return isPEMKey(data, a.KeyEncoding, c, chain) }},
		{a.Files.CertificateDER, false, func(data []byte) error { return equal(data, c.Leaf().Raw) }},
		{a.Files.PrivateKeyDER, true, func(data []byte) error { return isDERKey(data, a.KeyEncoding, c) }},
		{a.Files.PKCS12, true, func(data []byte) error { return isPKCS12(data, password, c, chain) }},
		{a.Files.PKCS12TrustStore, false, func(data []byte) error { return isPKCS12TrustStore(data, password, c) }},
		{a.Files.JKS, true, func(data []byte) error { return isJKS(data, password, a.KeyStoreAlias, c, chain) }},
		{a.Files.JKSTrustStore, false, func(data []byte) error { return isJKSTrustStore(data, password, c) }},
		{a.Files.KeyStorePassword, true, func(data []byte) error { return equal(data, []byte(password)) }},
	}
	if a.Chain == attributes.LeafOnly {
		kinds = append(kinds, kind{payload.FullChain, false, func(data []byte) error { return areCertificates(data, c.Chain) }})
	}
	kinds = slices.DeleteFunc(kinds, func(k kind) bool { return k.name == "" })
	var directory []byte
	all = slices.DeleteFunc(slices.Clone(all), func(f payload.File) bool {
		inside := a.Files.CADirectory != "" && strings.HasPrefix(f.Name, a.Files.CADirectory+"/") && !f.Secret
		if inside {
			directory = append(directory, f.Data...)
		}
		return inside
	})
	if a.Files.CADirectory != "" {
		if err := areTheRoots(certificatesIn(t, directory), c); err != nil {
			t.Errorf("%q: %q: %v", values, a.Files.CADirectory, err)
		}
	}
	if len(all) != len(kinds) {
		t.Errorf("%q: %d files, want %d", values, len(all), len(kinds))
	}
	for _, k := range kinds {
		i := slices.IndexFunc(all, func(f payload.File) bool { return f.Name == k.name })
		if i < 0 {
			t.Errorf("%q: there is no %q", values, k.name)
			continue
		}
		data := all[i].Data
		if err := k.check(data); err != nil {
			t.Errorf("%q: %q: %v", values, k.name, err)
		}
		leaks := bytes.Contains(data, []byte("PRIVATE KEY")) || bytes.Contains(data, privateBytes(c.Key)) || bytes.Contains(data, []byte(password))
		if all[i].Secret != k.secret || leaks && !k.secret {
			t.Errorf("%q: %q is secret: %t, want %t; it contains the key or the password: %t", values, k.name, all[i].Secret, k.secret, leaks)
		}
	}
}

// privateBytes returns what every encoding of the key contains.
func privateBytes(key issuer.PrivateKey) []byte {
	switch k := key.Signer.(type) {
	case *rsa.PrivateKey:
		return k.Primes[0].Bytes()
	case *ecdsa.PrivateKey:
		d, _ := k.Bytes()
		return d
	}
	return key.Signer.(ed25519.PrivateKey).Seed()
}

func equal(got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("other contents: %d bytes, want %d", len(got), len(want))
	}
	return nil
}

func areEqual(got, want []*x509.Certificate) error {
	if !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
		return fmt.Errorf("other certificates: %d, want %d", len(got), len(want))
	}
	return nil
}

// areTheRoots compares without the order.
func areTheRoots(got []*x509.Certificate, c *issuer.Credential) error {
	if !trust.Same(got, c.Roots.All()) || len(got) != len(c.Roots.All()) {
		return fmt.Errorf("other roots: %d, want %d", len(got), len(c.Roots.All()))
	}
	return nil
}

// areCertificates checks that there is nothing but the certificates, in PEM.
func areCertificates(data []byte, want []*x509.Certificate) error {
	var all []byte
	for _, certificate := range want {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})...)
	}
	return equal(data, all)
}

// isPEMKey checks that there is nothing but the key and the certificates, in PEM.
func isPEMKey(data []byte, encoding attributes.KeyEncoding, c *issuer.Credential, followed []*x509.Certificate) error {
	block, rest := pem.Decode(data)
	kinds := map[attributes.KeyEncoding]string{attributes.PKCS8: "PRIVATE KEY", attributes.PKCS1: "RSA PRIVATE KEY", attributes.SEC1: "EC PRIVATE KEY"}
	if block == nil || block.Type != kinds[encoding] || !bytes.Equal(append(pem.EncodeToMemory(block), rest...), data) {
		return fmt.Errorf("it does not begin with a key in %s", encoding)
	}
	return errors.Join(isDERKey(block.Bytes, encoding, c), areCertificates(rest, followed))
}

func isDERKey(data []byte, encoding attributes.KeyEncoding, c *issuer.Credential) (err error) {
	var key any
	switch encoding {
	case attributes.PKCS8:
		key, err = x509.ParsePKCS8PrivateKey(data)
	case attributes.PKCS1:
		key, err = x509.ParsePKCS1PrivateKey(data)
	case attributes.SEC1:
		key, err = x509.ParseECPrivateKey(data)
	}
	return matches(key, err, c)
}

func matches(key any, err error, c *issuer.Credential) error {
	if err == nil && !isKey(key, c.Key) {
		err = errors.New("another private key")
	}
	return err
}

func isPKCS12(data []byte, password string, c *issuer.Credential, chain []*x509.Certificate) error {
	key, leaf, others, err := pkcs12.DecodeChain(data, password)
	if err != nil {
		return err
	}
	return errors.Join(matches(key, nil, c), areEqual(append([]*x509.Certificate{leaf}, others...), chain))
}

func isPKCS12TrustStore(data []byte, password string, c *issuer.Credential) error {
	roots, err := pkcs12.DecodeTrustStore(data, password)
	if err != nil {
		return err
	}
	return areTheRoots(roots, c)
}

func isJKS(data []byte, password, alias string, c *issuer.Credential, chain []*x509.Certificate) error {
	store := keystore.New()
	if err := store.Load(bytes.NewReader(data), []byte(password)); err != nil {
		return err
	}
	entry, err := store.GetPrivateKeyEntry(alias, []byte(password))
	if err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(entry.PrivateKey)
	certificates, chainErr := certificatesOf(entry.CertificateChain...)
	return errors.Join(matches(key, err, c), chainErr, areEqual(certificates, chain))
}

func isJKSTrustStore(data []byte, password string, c *issuer.Credential) error {
	store := keystore.New()
	if err := store.Load(bytes.NewReader(data), []byte(password)); err != nil {
		return err
	}
	var all []keystore.Certificate
	for _, alias := range store.Aliases() {
		entry, err := store.GetTrustedCertificateEntry(alias)
		if err != nil {
			return err
		}
		all = append(all, entry.Certificate)
	}
	roots, err := certificatesOf(all...)
	return errors.Join(err, areTheRoots(roots, c))
}

func certificatesOf(all ...keystore.Certificate) (certificates []*x509.Certificate, err error) {
	for _, one := range all {
		certificate, err := x509.ParseCertificate(one.Content)
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, certificate)
	}
	return certificates, nil
}
