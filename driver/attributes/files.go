package attributes

import (
	"fmt"
	"slices"

	"github.com/flexstack/step-csi/issuer/names"
)

// Files are the names of a volume's files. They are distinct, and have no directory. The
// first three are always set, except with trust only, which has the third. An empty name
// means that the pod does not want the file.
type Files struct {
	Certificate, PrivateKey, CA string
	// Bundle is the private key, the leaf and the intermediates in one file.
	Bundle string
	// CertificateDER and PrivateKeyDER are the leaf and the private key in DER.
	CertificateDER, PrivateKeyDER string
	// CADirectory is a directory with a file of each root.
	CADirectory string
	// PKCS12 and JKS are key stores with the private key and its chain. The trust stores
	// contain the roots.
	PKCS12, PKCS12TrustStore, JKS, JKSTrustStore string
	// KeyStorePassword is the password of all key stores. It is empty without key stores.
	KeyStorePassword string
}

// HasKeyStore tells whether one of the files needs a password.
func (f Files) HasKeyStore() bool {
	return f.PKCS12 != "" || f.PKCS12TrustStore != "" || f.JKS != "" || f.JKSTrustStore != ""
}

// fileAttribute is an attribute whose value is the name of a file.
type fileAttribute struct {
	key  string
	name *string
}

// attributes returns all names with their attributes.
func (f *Files) attributes() []fileAttribute {
	return []fileAttribute{
		{"certificate-file", &f.Certificate},
		{"privatekey-file", &f.PrivateKey},
		{"ca-file", &f.CA},
		{"bundle-file", &f.Bundle},
		{"certificate-der-file", &f.CertificateDER},
		{"privatekey-der-file", &f.PrivateKeyDER},
		{"ca-directory", &f.CADirectory},
		{"pkcs12-file", &f.PKCS12},
		{"pkcs12-truststore-file", &f.PKCS12TrustStore},
		{"jks-file", &f.JKS},
		{"jks-truststore-file", &f.JKSTrustStore},
		{"keystore-password-file", &f.KeyStorePassword},
	}
}

// All returns the names of the files in the volume.
func (f Files) All() (all []string) {
	for _, a := range f.attributes() {
		if *a.name != "" {
			all = append(all, *a.name)
		}
	}
	return all
}

// checkDistinct returns an error if two files have the same name.
func (f *Files) checkDistinct() error {
	all := f.attributes()
	for i, a := range all {
		if j := slices.IndexFunc(all[:i], func(b fileAttribute) bool { return *a.name != "" && *a.name == *b.name }); j >= 0 {
			return fmt.Errorf("%s and %s are both %s; give them different names", all[j].key, a.key, names.Quote(*a.name))
		}
	}
	return nil
}

// ChainLength is how much of the chain follows the leaf in each file that contains the leaf.
type ChainLength string

// LeafOnly is nothing, FullChain all intermediates, and WithRoot also the root.
const (
	LeafOnly  ChainLength = "leaf"
	FullChain ChainLength = "full"
	WithRoot  ChainLength = "full-with-root"
)
