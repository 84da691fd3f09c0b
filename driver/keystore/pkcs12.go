package keystore

import (
	"crypto"
	"crypto/x509"
	"fmt"

	"software.sslmate.com/src/go-pkcs12"
)

// Profile is a set of algorithms of PKCS#12.
type Profile string

const (
	// Modern encrypts by PBES2 with AES-256-CBC and PBKDF2 (HMAC-SHA-256), and authenticates
	// by HMAC-SHA-256, as OpenSSL 3 does. Readers are OpenSSL 1.1.1, Java 8u301 and 11.0.12,
	// GnuTLS 3.6, Windows 10 1709 and Windows Server 2019, and newer.
	Modern Profile = "modern"
	// Legacy encrypts by pbeWithSHAAnd3-KeyTripleDES-CBC, and authenticates by HMAC-SHA-1. All
	// programs read it, except those that allow only FIPS 140's algorithms.
	Legacy Profile = "legacy"
)

// iterations is how often a reader has to hash the password. It is OpenSSL's default.
const iterations = 2048

func (p Profile) encoder(certificates []*x509.Certificate) *pkcs12.Encoder {
	encoder := pkcs12.Modern2023
	if p == Legacy {
		encoder = pkcs12.LegacyDES
	}
	return encoder.WithIterations(iterations).WithRand(saltsOf(certificates))
}

// PKCS12 encodes a private key and its chain, leaf first. Java lists the key by the alias.
func PKCS12(key crypto.Signer, chain []*x509.Certificate, alias, password string, p Profile) ([]byte, error) {
	data, err := p.encoder(chain).Encode(key, chain[0], chain[1:], password)
	if err == nil {
		data, err = nameKey(data, alias, password)
	}
	if err != nil {
		return nil, fmt.Errorf("PKCS#12: %w", err)
	}
	return data, nil
}

// PKCS12TrustStore encodes roots. Each has the attribute by which Java trusts it.
func PKCS12TrustStore(roots []*x509.Certificate, password string, p Profile) ([]byte, error) {
	var entries []pkcs12.TrustStoreEntry
	for _, root := range roots {
		entries = append(entries, pkcs12.TrustStoreEntry{Cert: root, FriendlyName: aliasOf(root)})
	}
	data, err := p.encoder(roots).EncodeTrustStoreEntries(entries, password)
	if err != nil {
		return nil, fmt.Errorf("PKCS#12: %w", err)
	}
	return data, nil
}
