package crash

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// names are those of a volume's files.
type names struct{ certificate, key, roots string }

var (
	usual = names{"tls.crt", "tls.key", "ca.crt"}
	other = names{"server.pem", "server-key.pem", "ca.crt"}
)

// attributes of a pod that wants its files so.
func (n names) attributes() map[string]string {
	return map[string]string{"certificate-file": n.certificate, "privatekey-file": n.key, "ca-file": n.roots}
}

var errNotMounted = errors.New("not mounted")

// read reads the volume at the path as a program does that opens ..data once, and
// checks that its files belong together. The error is errNotMounted if there is no
// volume. Any other error is a defect.
func read(path string, n names) (*x509.Certificate, error) {
	for {
		leaf, err := readOnce(path, n)
		// Two renewals since ..data was opened: the set is removed.
		if errors.Is(err, errVanished) {
			continue
		}
		return leaf, err
	}
}

var errVanished = errors.New("the set has been removed")

func readOnce(path string, n names) (*x509.Certificate, error) {
	target, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNotMounted
	}
	if err != nil {
		return nil, err
	}
	// This descriptor keeps the volume readable, also after it is unmounted.
	defer target.Close()
	if record, err := tmpfs.Record(target); err != nil {
		return nil, fmt.Errorf("half attached: %w", err)
	} else if record == nil {
		return nil, errNotMounted
	}
	root, err := tmpfs.Root(target)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	name, err := root.Readlink("..data")
	if err != nil {
		return nil, err
	}
	leaf, err := readSet(root, name, n)
	if _, gone := root.Lstat(name); err != nil && errors.Is(gone, fs.ErrNotExist) {
		return nil, errVanished
	}
	return leaf, err
}

// readSet reads the files in a directory of root, and checks that they belong
// together.
func readSet(root *os.Root, directory string, n names) (*x509.Certificate, error) {
	certificate, err1 := root.ReadFile(filepath.Join(directory, n.certificate))
	key, err2 := root.ReadFile(filepath.Join(directory, n.key))
	roots, err3 := root.ReadFile(filepath.Join(directory, n.roots))
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	pool, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, errors.New("there is no root in " + n.roots)
	}
	for _, der := range pair.Certificate[1:] {
		intermediate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		intermediates.AddCert(intermediate)
	}
	options := x509.VerifyOptions{Roots: pool, Intermediates: intermediates, CurrentTime: time.Now()}
	if options.CurrentTime.After(pair.Leaf.NotAfter) {
		options.CurrentTime = pair.Leaf.NotAfter // expiry is not checked here
	}
	_, err = pair.Leaf.Verify(options)
	return pair.Leaf, err
}

// readAll checks a volume that is not being written: with one of the sets of names,
// all ways to read it agree.
func readAll(path string, allowed ...names) (*x509.Certificate, error) {
	var all error
	for _, n := range allowed {
		leaf, err := read(path, n)
		if errors.Is(err, errNotMounted) {
			return nil, err
		}
		if err == nil {
			return leaf, readVisible(path, n, leaf)
		}
		all = errors.Join(all, err)
	}
	return nil, all
}

// readVisible reads each file through its own link, and through the path.
func readVisible(path string, n names, want *x509.Certificate) error {
	var system unix.Statfs_t
	if err := unix.Statfs(path, &system); err != nil {
		return err
	}
	if system.Flags&unix.ST_RDONLY == 0 {
		return fmt.Errorf("%s is writable", path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	leaf, err := readSet(root, ".", n)
	if err == nil && !leaf.Equal(want) {
		err = errors.New("the links lead elsewhere than ..data")
	}
	return err
}
