package keystore

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"

	jks "github.com/pavlo-v-chernykh/keystore-go/v4"
)

// JKS encodes a private key and its chain, leaf first, as Java's own kind of key store. The
// password protects both the store and the key. JKS is a weak encryption by SHA-1.
func JKS(key crypto.Signer, chain []*x509.Certificate, alias, password string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	// Java shows the time of an entry as its creation date. The leaf's start makes the
	// entry's age the certificate's.
	entry := jks.PrivateKeyEntry{CreationTime: chain[0].NotBefore, PrivateKey: der}
	for _, certificate := range chain {
		entry.CertificateChain = append(entry.CertificateChain, jksCertificate(certificate))
	}
	secret := []byte(password)
	defer clear(secret)
	store := jks.New(jks.WithCustomRandomNumberGenerator(saltsOf(chain)))
	if err := store.SetPrivateKeyEntry(alias, entry, secret); err != nil {
		return nil, fmt.Errorf("JKS: %w", err)
	}
	return storeJKS(store, secret)
}

// JKSTrustStore encodes roots as a Java key store without a key.
func JKSTrustStore(roots []*x509.Certificate, password string) ([]byte, error) {
	store := jks.New(jks.WithOrderedAliases())
	for _, root := range roots {
		entry := jks.TrustedCertificateEntry{CreationTime: root.NotBefore, Certificate: jksCertificate(root)}
		if err := store.SetTrustedCertificateEntry(aliasOf(root), entry); err != nil {
			return nil, fmt.Errorf("JKS: %w", err)
		}
	}
	secret := []byte(password)
	defer clear(secret)
	return storeJKS(store, secret)
}

func jksCertificate(c *x509.Certificate) jks.Certificate {
	return jks.Certificate{Type: "X.509", Content: c.Raw}
}

func storeJKS(store jks.KeyStore, password []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := store.Store(&b, password); err != nil {
		return nil, fmt.Errorf("JKS: %w", err)
	}
	return b.Bytes(), nil
}
