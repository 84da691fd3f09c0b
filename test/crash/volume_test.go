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
)

// names are those of a volume's files.
type names attributes.Files

var (
	usual = names{
		Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt",
		Bundle: "bundle.pem", CertificateDER: "tls.crt.der", PrivateKeyDER: "tls.key.der",
	}
	other = names{
		Certificate: "server.pem", PrivateKey: "server-key.pem", CA: "ca.crt",
		Bundle: "server-bundle.pem", CertificateDER: "server.der", PrivateKeyDER: "server-key.der",
	}
)

// attributes of a pod that wants its files so.
func (n names) attributes() map[string]string {
	return map[string]string{
		"certificate-file": n.Certificate, "privatekey-file": n.PrivateKey, "ca-file": n.CA,
		"bundle-file": n.Bundle, "certificate-der-file": n.CertificateDER, "privatekey-der-file": n.PrivateKeyDER,
		"chain": "leaf",
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
			return contents.Leaf, nil
		}
		// More than one rotation while the files were read: the set is gone.
		if _, gone := root.Lstat(set); !errors.Is(gone, fs.ErrNotExist) {
			return nil, err
		}
	}
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
