package payload

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
)

// CheckCopies checks that the files of a set that contain the leaf or the private key once
// more have the same ones.
func CheckCopies(set *os.Root, files attributes.Files, leaf *x509.Certificate, key issuer.PrivateKey) error {
	for _, copied := range []struct {
		name  string
		check func([]byte, *x509.Certificate, issuer.PrivateKey) error
	}{
		{files.Bundle, checkBundle},
		{files.CertificateDER, checkLeafDER},
		{files.PrivateKeyDER, checkKeyDER},
	} {
		if copied.name == "" {
			continue
		}
		data, err := ReadFile(set, copied.name)
		if err != nil {
			return err
		}
		err = copied.check(data, leaf, key)
		clear(data) // it may contain the key
		if err != nil {
			return fmt.Errorf("%s: %w", copied.name, err)
		}
	}
	return nil
}

var (
	errOtherKey  = errors.New("the private key is not the one in the other files")
	errOtherLeaf = errors.New("the certificate is not the one in the other files")
)

func checkBundle(data []byte, leaf *x509.Certificate, key issuer.PrivateKey) error {
	block, rest := pem.Decode(data)
	if block == nil || len(block.Bytes) > maxKey {
		return errOtherKey
	}
	defer clear(block.Bytes)
	if err := checkKey(block, key); err != nil {
		return err
	}
	if block, _ = pem.Decode(rest); block == nil {
		return errOtherLeaf
	}
	return checkLeafDER(block.Bytes, leaf, key)
}

func checkLeafDER(data []byte, leaf *x509.Certificate, _ issuer.PrivateKey) error {
	if !bytes.Equal(data, leaf.Raw) {
		return errOtherLeaf
	}
	return nil
}

func checkKeyDER(data []byte, _ *x509.Certificate, key issuer.PrivateKey) error {
	if len(data) > maxKey {
		return errOtherKey
	}
	for _, kind := range []string{"PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"} {
		if checkKey(&pem.Block{Type: kind, Bytes: data}, key) == nil {
			return nil
		}
	}
	return errOtherKey
}

func checkKey(block *pem.Block, key issuer.PrivateKey) error {
	found, err := parseKey(block)
	if err != nil {
		return err
	}
	if expected, ok := key.Signer.(interface{ Equal(crypto.PrivateKey) bool }); !ok || !expected.Equal(found) {
		return errOtherKey
	}
	return nil
}
