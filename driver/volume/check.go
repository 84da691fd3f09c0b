package volume

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"go.step.sm/crypto/pemutil"
	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/payload"
)

// Contents are what the files of a volume say.
type Contents struct {
	Leaf          *x509.Certificate
	Intermediates []*x509.Certificate
	Roots         []*x509.Certificate
	// Written is when the files were written.
	Written time.Time
}

// Check states what is true of every volume that is mounted, whenever it is looked at
// and whatever was killed before, and returns what its files say:
//
//   - The mount is read-only.
//   - ..data leads to one set of files, and all of the names lead through it.
//   - The private key is the leaf's.
//   - The leaf's chain ends at one of the roots. Whether it has expired is another
//     question: it may, while the CA is down.
//
// The error has all that is not true; the contents are nil if there is no certificate.
// In a directory that is no volume, such as a copy, only the files are checked.
func Check(directory *os.Root, names payload.Names) (*Contents, error) {
	var problems []error
	mounted, writable, err := mountOf(directory)
	if mounted && writable {
		err = errors.New("the mount is writable")
	}
	problems = append(problems, err)
	if _, err := directory.Lstat(payload.DataLink); mounted || err == nil {
		problems = append(problems, err, checkNames(directory, names))
	}
	contents, err := readContents(directory, names)
	return contents, errors.Join(append(problems, err)...)
}

// mountOf tells whether a file system is mounted at the directory, and lets it be
// written.
func mountOf(directory *os.Root) (mounted, writable bool, err error) {
	file, err := directory.Open(".")
	if err != nil {
		return false, false, err
	}
	defer file.Close()
	var attributes unix.Statx_t
	if err := unix.Statx(int(file.Fd()), "", unix.AT_EMPTY_PATH, 0, &attributes); err != nil {
		return false, false, os.NewSyscallError("statx", err)
	}
	var system unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &system); err != nil {
		return false, false, os.NewSyscallError("fstatfs", err)
	}
	return attributes.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, system.Flags&unix.ST_RDONLY == 0, nil
}

// checkNames checks that each name is a link through ..data. There may be other names:
// a process that was killed while the names changed leaves some until the next renewal.
func checkNames(directory *os.Root, names payload.Names) error {
	var problems []error
	for _, name := range names.All() {
		link, err := directory.Readlink(name)
		if err == nil && link != payload.DataLink+"/"+name {
			err = fmt.Errorf("%s leads to %s, and not through %s", name, link, payload.DataLink)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// readContents reads the files, and checks that they belong together. With an error,
// it returns what it could read, if that has a leaf.
func readContents(directory *os.Root, names payload.Names) (*Contents, error) {
	// All of one set: a renewal may replace it at any time.
	set, err := directory.OpenRoot(payload.DataLink)
	if errors.Is(err, fs.ErrNotExist) {
		set, err = directory.OpenRoot(".")
	}
	if err != nil {
		return nil, err
	}
	defer set.Close()
	info, err := set.Stat(names.Certificate)
	if err != nil {
		return nil, err
	}
	chain, err := readCertificates(set, names.Certificate)
	if err != nil {
		return nil, err
	}
	c := &Contents{Leaf: chain[0], Intermediates: chain[1:], Written: info.ModTime()}
	key, err := payload.ReadKey(set, names.PrivateKey)
	if err != nil {
		return c, err
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(c.Leaf.PublicKey) {
		return c, fmt.Errorf("%s is the key of another certificate than %s", names.PrivateKey, names.Certificate)
	}
	if c.Roots, err = readCertificates(set, names.CA); err != nil {
		return c, err
	}
	at := time.Now()
	switch {
	case at.Before(c.Leaf.NotBefore):
		at = c.Leaf.NotBefore
	case at.After(c.Leaf.NotAfter):
		at = c.Leaf.NotAfter
	}
	if err := c.Verify(at, x509.ExtKeyUsageAny); err != nil {
		return c, fmt.Errorf("%s with the roots of %s: %w", names.Certificate, names.CA, err)
	}
	return c, nil
}

func readCertificates(set *os.Root, name string) ([]*x509.Certificate, error) {
	data, err := set.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("%s: there is no certificate in it", name)
	}
	certificates, err := pemutil.ParseCertificateBundle(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return certificates, nil
}

// Verify verifies the leaf's chain up to one of the roots, as of the time.
func (c *Contents) Verify(at time.Time, usages ...x509.ExtKeyUsage) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range c.Roots {
		roots.AddCert(root)
	}
	for _, intermediate := range c.Intermediates {
		intermediates.AddCert(intermediate)
	}
	for _, usage := range usages {
		_, err := c.Leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: at,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Fits checks that the record says of which pod's volume it is, and no other
// certificate than the mounted one. A process that was killed between writing the
// files and the record leaves one that does not fit, until the next process adopts
// the volume.
func (r Record) Fits(c *Contents) error {
	switch serial := c.Leaf.SerialNumber.String(); {
	case r.Serial != serial:
		return fmt.Errorf("the record is of the certificate %s, and %s is mounted", r.Serial, serial)
	case !r.NotAfter.Equal(c.Leaf.NotAfter):
		return fmt.Errorf("the record has the expiry %s, and the certificate %s", r.NotAfter, c.Leaf.NotAfter)
	}
	return nil
}
