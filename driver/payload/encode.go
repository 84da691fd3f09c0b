package payload

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// Encode makes all files of a credential. Without a password, it leaves out the key stores.
func Encode(c *issuer.Credential, a attributes.Attributes, p Password) ([]File, error) {
	return encode(contents{c, a, p}, func(format) bool { return true })
}

// EncodeTrust makes the files that depend on the roots alone. Without a password, it leaves
// out the key stores.
func EncodeTrust(roots issuer.Roots, a attributes.Attributes, p Password) ([]File, error) {
	return encode(contents{&issuer.Credential{Roots: roots}, a, p}, func(f format) bool { return f.trust })
}

func encode(c contents, wanted func(format) bool) ([]File, error) {
	var files []File
	for _, f := range formats {
		name := f.name(c.attributes)
		if name == "" || !wanted(f) || f.keyStore && !c.password.Known() {
			continue
		}
		made, err := f.files(c, name)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", name, err)
		}
		files = append(files, made...)
	}
	return files, nil
}

// files makes the file, or the files in the directory.
func (f format) files(c contents, name string) ([]File, error) {
	if f.directory != nil {
		return f.directory(c, name)
	}
	data, err := f.encode(c)
	return []File{{Name: name, Data: data, Secret: f.secret}}, err
}

// Has tells whether the set in use has these files with the same contents.
func Has(root *os.Root, files []File) bool {
	return !slices.ContainsFunc(files, func(f File) bool {
		data, err := ReadFile(root, DataLink+"/"+f.Name)
		defer clear(data) // it may contain the key
		return err != nil || !bytes.Equal(data, f.Data)
	})
}

// HasRoots tells whether the file contains these roots in any order, and nothing else. An
// earlier version may have written the file, in an order of its own.
func HasRoots(root *os.Root, name string, roots issuer.Roots) (bool, error) {
	data, err := ReadFile(root, name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	var found []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return false, nil
		}
		found = append(found, certificate)
	}
	return trust.Same(found, roots.All()) && bytes.Equal(data, encodeCertificates(found)), nil
}

func encodeCertificates(certificates []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, certificate := range certificates {
		// A bytes.Buffer does not fail.
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
	}
	return b.Bytes()
}

// encodeKey returns the key in PEM, followed by others.
func encodeKey(key issuer.PrivateKey, encoding attributes.KeyEncoding, followed []byte) ([]byte, error) {
	der, kind, err := marshalKey(key.Signer, encoding)
	if err != nil {
		return nil, fmt.Errorf("encode the private key: %w", err)
	}
	defer clear(der)
	// A growing buffer would leave copies of the key in memory. PEM adds a third, a
	// newline per 64 bytes, and two lines.
	b := bytes.NewBuffer(make([]byte, 0, 3*len(der)/2+128+len(followed)))
	if err := pem.Encode(b, &pem.Block{Type: kind, Bytes: der}); err != nil {
		return nil, err
	}
	b.Write(followed)
	return b.Bytes(), nil
}

func marshalKey(key crypto.Signer, encoding attributes.KeyEncoding) (der []byte, kind string, err error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if encoding == attributes.PKCS1 {
			return x509.MarshalPKCS1PrivateKey(k), "RSA PRIVATE KEY", nil
		}
	case *ecdsa.PrivateKey:
		if encoding == attributes.SEC1 {
			der, err = x509.MarshalECPrivateKey(k)
			return der, "EC PRIVATE KEY", err
		}
	}
	if encoding != attributes.PKCS8 {
		return nil, "", fmt.Errorf("%s cannot encode a %T", encoding, key)
	}
	der, err = x509.MarshalPKCS8PrivateKey(key)
	return der, "PRIVATE KEY", err
}

// ReadKey reads the private key from a file of Encode and Write.
func ReadKey(root *os.Root, name string) (issuer.PrivateKey, error) {
	data, err := readFile(root, name, maxKey)
	if err != nil {
		return issuer.PrivateKey{}, err
	}
	defer clear(data)
	block, _ := pem.Decode(data)
	if block == nil {
		return issuer.PrivateKey{}, fmt.Errorf("%s is not PEM", name)
	}
	defer clear(block.Bytes)
	key, err := parseKey(block)
	if err != nil {
		return issuer.PrivateKey{}, fmt.Errorf("%s: %w", name, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return issuer.PrivateKey{}, fmt.Errorf("%s: a %T is not a private key", name, key)
	}
	return issuer.PrivateKey{Signer: signer}, nil
}

// parseKey undoes marshalKey.
func parseKey(block *pem.Block) (any, error) {
	switch block.Type {
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	}
	return x509.ParsePKCS8PrivateKey(block.Bytes)
}
