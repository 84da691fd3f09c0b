package crash

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/test/keystores"
)

// names are those of a volume's files. PKCS#12 is not among them: reading it takes
// milliseconds, which leaves less time for kills.
type names attributes.Files

var (
	usual = names{
		Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt",
		Bundle: "bundle.pem", CertificateDER: "tls.crt.der", PrivateKeyDER: "tls.key.der",
		JKS: "keystore.jks", JKSTrustStore: "truststore.jks", KeyStorePassword: "keystore-password",
		CADirectory: "certs",
	}
	other = names{
		Certificate: "server.pem", PrivateKey: "server-key.pem", CA: "ca.crt",
		Bundle: "server-bundle.pem", CertificateDER: "server.der", PrivateKeyDER: "server-key.der",
		JKS: "server.jks", JKSTrustStore: "ca.jks", KeyStorePassword: "password",
		CADirectory: "server-certs",
	}
)

// attributes of a pod that wants its files so.
func (n names) attributes() map[string]string {
	return map[string]string{
		"certificate-file": n.Certificate, "privatekey-file": n.PrivateKey, "ca-file": n.CA,
		"bundle-file": n.Bundle, "certificate-der-file": n.CertificateDER, "privatekey-der-file": n.PrivateKeyDER,
		"jks-file": n.JKS, "jks-truststore-file": n.JKSTrustStore, "keystore-password-file": n.KeyStorePassword,
		"ca-directory": n.CADirectory,
		"chain":        "leaf",
	}
}

var errNotMounted = errors.New("not mounted")

// read checks the volume at the path, whatever is being done to it, and returns its
// leaf. The error is errNotMounted where there is no volume; any other must never be.
func read(path string, n names) (*x509.Certificate, error) {
	target, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNotMounted
	}
	if err != nil {
		return nil, err
	}
	// What is mounted there now stays readable through this, also when unmounted.
	defer target.Close()
	if record, err := tmpfs.Record(target); err != nil {
		return nil, err // half attached
	} else if record == nil {
		return nil, errNotMounted
	}
	root, err := tmpfs.Root(target)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for {
		set, err := root.Readlink(payload.DataLink)
		if err != nil {
			return nil, err
		}
		contents, err := volume.Check(root, attributes.Files(n))
		if err == nil {
			err = checkStores(root, set, n)
		}
		if err == nil {
			return contents.Leaf, nil
		}
		// More than one rotation while the files were read: the set is gone.
		if _, gone := root.Lstat(set); !errors.Is(gone, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// checkStores checks that the key stores of a set open with the password in the set, and have the
// contents of the PEM files.
func checkStores(root *os.Root, set string, n names) error {
	if !attributes.Files(n).HasKeyStore() {
		return nil
	}
	directory, err := root.OpenRoot(set)
	if err != nil {
		return err
	}
	defer directory.Close()
	return keystores.Check(directory, attributes.Files(n), "certificate", "")
}

// readAll checks a volume that has one of the sets of names.
func readAll(path string, allowed ...names) (*x509.Certificate, error) {
	var all error
	for _, n := range allowed {
		leaf, err := read(path, n)
		if err == nil || errors.Is(err, errNotMounted) {
			return leaf, err
		}
		all = errors.Join(all, err)
	}
	return nil, all
}
