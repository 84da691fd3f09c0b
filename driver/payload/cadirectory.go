package payload

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer/trust"
)

// maxDirectory is the largest number of roots in a directory of roots.
const maxDirectory = 2048

// rootsDirectory makes a directory in which OpenSSL finds each root by its subject: see
// https://docs.openssl.org/master/man1/openssl-rehash/. Each root has a file of its own,
// because OpenSSL's command makes links to such files, and other libraries read all files.
func (c contents) rootsDirectory(name string) (files []File, err error) {
	roots := c.Roots.All()
	if len(roots) > maxDirectory {
		return nil, fmt.Errorf("there are %d roots, and a directory has room for %d", len(roots), maxDirectory)
	}
	next := map[uint32]int{} // OpenSSL tries the numbers from 0 on
	for _, root := range roots {
		hash, err := subjectHash(root.RawSubject)
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", trust.Fingerprint(root), err)
		}
		files = append(files, File{
			Name: fmt.Sprintf("%s/%08x.%d", name, hash, next[hash]), Data: encodeCertificates([]*x509.Certificate{root}),
		})
		next[hash]++
	}
	return files, nil
}

// CheckRootsDirectory checks that the directory in a set has exactly these roots, each under
// the names of its subject.
func CheckRootsDirectory(set *os.Root, name string, roots []*x509.Certificate) error {
	directory, err := OpenDirectory(set, name)
	if err != nil {
		return err
	}
	defer directory.Close()
	names, err := list(directory, ".", maxDirectory)
	if err != nil {
		return err
	}
	missing := trust.Union(roots, nil)
	if len(names) != len(missing) {
		return fmt.Errorf("%s: the directory has %d files, and there are %d roots", name, len(names), len(missing))
	}
	for _, file := range names {
		data, err := ReadFile(directory, file)
		if err != nil {
			return err
		}
		root, err := onlyCertificate(data)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", name, file, err)
		}
		i := slices.IndexFunc(missing, root.Equal)
		if i < 0 {
			return fmt.Errorf("%s/%s: it is none of the roots, or is there twice", name, file)
		}
		missing = slices.Delete(missing, i, i+1)
		hash, err := subjectHash(root.RawSubject)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(file, fmt.Sprintf("%08x.", hash)) {
			return fmt.Errorf("%s/%s: the name is not the hash of the subject, %08x", name, file, hash)
		}
	}
	return nil
}

// onlyCertificate reads a file with one certificate in PEM.
func onlyCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || !bytes.Equal(pem.EncodeToMemory(block), data) {
		return nil, errors.New("the file has no certificate, or more than one")
	}
	return x509.ParseCertificate(block.Bytes)
}
