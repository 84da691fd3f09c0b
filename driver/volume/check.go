package volume

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"go.step.sm/crypto/pemutil"
	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer/chain"
)

// Contents are the parsed files of a volume.
type Contents struct {
	Leaf          *x509.Certificate
	Intermediates []*x509.Certificate
	Roots         []*x509.Certificate
	// Chain is the verified chain, which may have expired.
	Chain chain.Chain
	// Written is when the files were written.
	Written time.Time
}

// Check checks the invariants of a mounted volume, and returns its contents. The
// invariants hold at any time, even after a process was killed:
//
//   - The mount is read-only.
//   - ..data points to one set of files, and all file names are links through it.
//   - The private key belongs to the leaf.
//   - The leaf's chain ends at one of the roots. Check ignores expiry: certificates
//     can expire while the CA is down.
//
// The error lists all violations; the contents are nil if there is no certificate. In a
// directory that is not a mount, such as a copy, Check checks only the files.
func Check(directory *os.Root, names attributes.Files) (*Contents, error) {
	err := checkMount(directory, names)
	contents, wrong := readContents(directory, names)
	return contents, errors.Join(err, wrong)
}

// CheckTrust checks the invariants of a volume with trust only, and returns the roots: the
// first two of Check, and that each root is in each of the files.
func CheckTrust(directory *os.Root, names attributes.Files) ([]*x509.Certificate, error) {
	err := checkMount(directory, names)
	roots, wrong := readTrust(directory, names)
	return roots, errors.Join(err, wrong)
}

func readTrust(directory *os.Root, names attributes.Files) ([]*x509.Certificate, error) {
	set, err := openSet(directory)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	return readRoots(set, names)
}

// readRoots reads the roots from the file of a set, and checks the other files of the roots.
func readRoots(set *os.Root, names attributes.Files) ([]*x509.Certificate, error) {
	roots, err := readCertificates(set, names.CA)
	if err == nil && names.CADirectory != "" {
		err = payload.CheckRootsDirectory(set, names.CADirectory, roots)
	}
	return roots, err
}

// checkMount checks that the mount is read-only, and that all names are links through ..data.
func checkMount(directory *os.Root, names attributes.Files) error {
	var problems []error
	mounted, writable, err := mountOf(directory)
	if mounted && writable {
		err = errors.New("the mount is writable")
	}
	problems = append(problems, err)
	if _, err := directory.Lstat(payload.DataLink); mounted || err == nil {
		problems = append(problems, err, checkNames(directory, names))
	}
	return errors.Join(problems...)
}

// openSet opens the set that is in use, or the directory itself if it is a copy of one.
func openSet(directory *os.Root) (*os.Root, error) {
	set, err := payload.OpenSet(directory)
	if errors.Is(err, fs.ErrNotExist) {
		set, err = payload.OpenDirectory(directory, ".")
	}
	return set, err
}

// mountOf tells whether the directory is the root of a mount, and whether its file
// system is writable.
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

// checkNames checks that each name is a link through ..data. It accepts other names: a
// process that was killed while it changed names leaves some until the next renewal.
func checkNames(directory *os.Root, names attributes.Files) error {
	var problems []error
	for _, name := range names.All() {
		link, err := directory.Readlink(name)
		if err == nil && link != payload.DataLink+"/"+name {
			err = fmt.Errorf("%s points to %s, not through %s", name, link, payload.DataLink)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// readContents reads the files, and checks that they belong together. After an error,
// it returns the part that it could read, or nil without a leaf.
func readContents(directory *os.Root, names attributes.Files) (*Contents, error) {
	// Read all files from one set: a renewal may replace the set at any time.
	set, err := openSet(directory)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	info, err := set.Stat(names.Certificate)
	if err != nil {
		return nil, err
	}
	certificates, err := readChain(set, names.Certificate)
	if err != nil {
		return nil, err
	}
	c := &Contents{Leaf: certificates[0], Intermediates: certificates[1:], Written: info.ModTime()}
	key, err := payload.ReadKey(set, names.PrivateKey)
	if err != nil {
		return c, err
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(c.Leaf.PublicKey) {
		return c, fmt.Errorf("%s is the key of another certificate than %s", names.PrivateKey, names.Certificate)
	}
	if err := payload.CheckCopies(set, names, c.Leaf, key); err != nil {
		return c, err
	}
	if c.Roots, err = readRoots(set, names); err != nil {
		return c, err
	}
	if c.Chain, err = verify(certificates, c.Roots); err != nil {
		return c, fmt.Errorf("%s with the roots of %s: %w", names.Certificate, names.CA, err)
	}
	return c, nil
}

// verify verifies the chain, leaf first, but not that it is valid now.
func verify(certificates, roots []*x509.Certificate) (chain.Chain, error) {
	c, err := chain.Verify(certificates, roots, time.Now(), x509.ExtKeyUsageAny)
	if _, ok := errors.AsType[*chain.ValidityError](err); ok {
		err = nil
	}
	return c, err
}

// readChain reads the leaf and its intermediates from a set. The file of the certificate may
// also contain the root, or the leaf alone.
func readChain(set *os.Root, name string) ([]*x509.Certificate, error) {
	certificates, err := readCertificates(set, name)
	if err != nil {
		return nil, err
	}
	if all, err := readCertificates(set, payload.FullChain); err == nil && all[0].Equal(certificates[0]) {
		certificates = all
	}
	return append(certificates[:1], slices.DeleteFunc(certificates[1:], chain.IsSelfSigned)...), nil
}

func readCertificates(set *os.Root, name string) ([]*x509.Certificate, error) {
	data, err := payload.ReadFile(set, name)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("%s: the file contains no certificate", name)
	}
	certificates, err := pemutil.ParseCertificateBundle(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, certificate := range certificates {
		if key, ok := certificate.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSA {
			return nil, fmt.Errorf("%s: a certificate has an RSA key of %d bits, and the limit is %d", name, key.N.BitLen(), maxRSA)
		}
	}
	return certificates, nil
}

// maxRSA is the largest RSA key, in bits, that crypto/tls accepts. The verification of a
// signature with a much larger key takes many seconds.
const maxRSA = 8192

// Verify verifies the whole chain up to one of the roots, at the given time.
func (c *Contents) Verify(at time.Time, usages ...x509.ExtKeyUsage) error {
	for _, usage := range usages {
		if _, err := chain.Verify(append([]*x509.Certificate{c.Leaf}, c.Intermediates...), c.Roots, at, usage); err != nil {
			return err
		}
	}
	return nil
}

// Fits checks that the record describes the mounted certificate. A process that was
// killed after it wrote the files, but before the record, leaves a record that does not
// fit until the next process adopts the volume.
func (r Record) Fits(c *Contents) error {
	switch serial := c.Leaf.SerialNumber.String(); {
	case r.Serial != serial:
		return fmt.Errorf("the record has the serial number %s, but the mounted certificate has %s", r.Serial, serial)
	case !r.NotAfter.Equal(c.Leaf.NotAfter):
		return fmt.Errorf("the record has the expiry %s, but the mounted certificate has %s", r.NotAfter, c.Leaf.NotAfter)
	}
	return nil
}
