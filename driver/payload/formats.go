package payload

import (
	"crypto/x509"
	"slices"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/keystore"
	"github.com/flexstack/step-csi/issuer"
)

// FullChain is a file of a set that has no visible name: the leaf and its intermediates, for
// this program, if no other file has the intermediates. Users cannot choose the name.
const FullChain = Reserved + "chain.pem"

// contents are what all files of a volume are made from.
type contents struct {
	*issuer.Credential
	attributes attributes.Attributes
	password   Password
}

// format is a kind of file.
type format struct {
	// name returns the name of the file, or an empty string if the pod does not want it.
	name func(attributes.Attributes) string
	// secret means that the file contains the private key, or the password.
	secret bool
	// trust means that the file depends on the roots alone, or is needed to read such a file.
	trust bool
	// keyStore means that the file depends on the password.
	keyStore bool
	encode   func(contents) ([]byte, error)
	// directory makes a directory of that name instead of a file: the files in it.
	directory func(c contents, name string) ([]File, error)
}

// formats are all kinds of files. The chain begins with the leaf. What follows is what the
// attribute chain says.
var formats = []format{
	{name: func(a attributes.Attributes) string { return a.Files.Certificate }, encode: contents.pemChain},
	{name: func(a attributes.Attributes) string { return a.Files.PrivateKey }, secret: true, encode: contents.pemKey},
	{name: func(a attributes.Attributes) string { return a.Files.CA }, trust: true, encode: contents.pemRoots},
	{name: func(a attributes.Attributes) string { return a.Files.SPIFFEBundle }, trust: true, encode: contents.pemSPIFFEBundle},
	{name: func(a attributes.Attributes) string { return a.Files.Bundle }, secret: true, encode: contents.pemBundle},
	{name: func(a attributes.Attributes) string { return a.Files.CertificateDER }, encode: contents.derLeaf},
	{name: func(a attributes.Attributes) string { return a.Files.PrivateKeyDER }, secret: true, encode: contents.derKey},
	{name: func(a attributes.Attributes) string { return a.Files.CADirectory }, trust: true, directory: contents.rootsDirectory},
	{name: func(a attributes.Attributes) string { return a.Files.PKCS12 }, secret: true, keyStore: true, encode: contents.pkcs12},
	{name: func(a attributes.Attributes) string { return a.Files.PKCS12TrustStore }, trust: true, keyStore: true, encode: contents.pkcs12Roots},
	{name: func(a attributes.Attributes) string { return a.Files.JKS }, secret: true, keyStore: true, encode: contents.jks},
	{name: func(a attributes.Attributes) string { return a.Files.JKSTrustStore }, trust: true, keyStore: true, encode: contents.jksRoots},
	{name: func(a attributes.Attributes) string { return a.Files.KeyStorePassword }, secret: true, trust: true, keyStore: true, encode: contents.keyStorePassword},
	{name: nameOfFullChain, encode: contents.pemFullChain},
}

func nameOfFullChain(a attributes.Attributes) string {
	if a.Chain == attributes.LeafOnly {
		return FullChain
	}
	return ""
}

// chain returns the leaf and what follows it.
func (c contents) chain() []*x509.Certificate {
	switch c.attributes.Chain {
	case attributes.LeafOnly:
		return c.Chain[:1]
	case attributes.WithRoot:
		if root := rootOf(c.Chain, c.Roots.Own); root != nil {
			return append(slices.Clip(c.Chain), root)
		}
	}
	return c.Chain
}

// rootOf returns the root that signed one of the certificates, or nil. If there are several,
// it is that of the certificate nearest to the leaf.
func rootOf(chain, roots []*x509.Certificate) *x509.Certificate {
	for _, c := range chain {
		for _, root := range roots {
			if c.CheckSignatureFrom(root) == nil {
				return root
			}
		}
	}
	return nil
}

// The PEM files are those of RFC 7468.

func (c contents) pemChain() ([]byte, error)     { return encodeCertificates(c.chain()), nil }
func (c contents) pemFullChain() ([]byte, error) { return encodeCertificates(c.Chain), nil }
func (c contents) pemRoots() ([]byte, error)     { return encodeCertificates(c.Roots.All()), nil }

// pemSPIFFEBundle has no roots of other trust domains: a program that verifies with them would
// take the identities of these domains for those of the pod's own one.
func (c contents) pemSPIFFEBundle() ([]byte, error) {
	return encodeCertificates(ownRoots(c.Roots).All()), nil
}

func ownRoots(roots issuer.Roots) issuer.Roots { return issuer.Roots{Own: roots.Own} }

func (c contents) pemKey() ([]byte, error) {
	return encodeKey(c.Key, c.attributes.KeyEncoding, nil)
}

// pemBundle has the order of the Kubernetes API's credential bundles: PodCertificateProjection
// in https://pkg.go.dev/k8s.io/api/core/v1.
func (c contents) pemBundle() ([]byte, error) {
	return encodeKey(c.Key, c.attributes.KeyEncoding, encodeCertificates(c.chain()))
}

// derLeaf returns a copy, because the caller overwrites it.
func (c contents) derLeaf() ([]byte, error) { return slices.Clone(c.Leaf().Raw), nil }

func (c contents) derKey() ([]byte, error) {
	der, _, err := marshalKey(c.Key.Signer, c.attributes.KeyEncoding)
	return der, err
}

func (c contents) pkcs12() ([]byte, error) {
	return keystore.PKCS12(c.Key.Signer, c.chain(), c.attributes.KeyStoreAlias, c.password.text, c.attributes.PKCS12Profile)
}

func (c contents) pkcs12Roots() ([]byte, error) {
	return keystore.PKCS12TrustStore(c.Roots.All(), c.password.text, c.attributes.PKCS12Profile)
}

func (c contents) jks() ([]byte, error) {
	return keystore.JKS(c.Key.Signer, c.chain(), c.attributes.KeyStoreAlias, c.password.text)
}

func (c contents) jksRoots() ([]byte, error) {
	return keystore.JKSTrustStore(c.Roots.All(), c.password.text)
}

func (c contents) keyStorePassword() ([]byte, error) { return []byte(c.password.text), nil }
