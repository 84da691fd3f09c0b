// Package keystore encodes a private key with its chain, or trusted roots, as the key stores
// that Java, .NET and Windows programs read: PKCS#12 (RFC 7292) and Java's JKS. It does not
// read key stores: a pod can change the files of its volume, and a key store names how often
// its reader has to hash the password.
//
// The encryption of a key store protects nothing that the volume does not show anyway: the
// private key is beside it, in a PEM file with the same access. Programs just do not read a
// key store without a password. The package therefore uses the number of iterations that
// OpenSSL uses.
//
// The same arguments give the same bytes, so that a key store changes only when its contents
// or its password change: the salts are derived from the certificates.
package keystore

import (
	"crypto/sha256"
	"crypto/sha3"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
)

// maxAlias is the longest alias. Java has no limit.
const maxAlias = 64

// CheckAlias returns an error unless all programs read the alias of a private key. Java
// ignores its case.
func CheckAlias(alias string) error {
	if alias == "" || len(alias) > maxAlias || !isPrintableASCII(alias) || alias[0] == ' ' || alias[len(alias)-1] == ' ' {
		return fmt.Errorf("%q is not an alias: use 1 to %d printable ASCII characters, without a blank at either end", alias, maxAlias)
	}
	return nil
}

// aliasOf returns the alias of a root. It depends on the root alone, so that it stays the
// same when the CA adds or removes other roots, and no two roots share it.
func aliasOf(root *x509.Certificate) string {
	fingerprint := sha256.Sum256(root.Raw)
	return "ca-" + hex.EncodeToString(fingerprint[:8])
}

// saltsOf returns the salts and initialization vectors for a store with the certificates. They
// need not be secret, but must differ for each private key and each list of certificates: the
// encryption of a JKS would reveal the difference of two keys with the same salt and password.
func saltsOf(certificates []*x509.Certificate) io.Reader {
	salts := sha3.NewSHAKE256()
	for _, certificate := range certificates {
		salts.Write(certificate.Raw)
	}
	return salts
}

func isPrintableASCII(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}
