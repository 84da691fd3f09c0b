package payload_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/issuer"
)

var (
	commonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	organization = asn1.ObjectIdentifier{2, 5, 4, 10}
	country      = asn1.ObjectIdentifier{2, 5, 4, 6}
)

// part is an attribute of a subject, with a value of any type.
type part struct {
	kind  asn1.ObjectIdentifier
	tag   cbasn1.Tag
	value string
}

// subjectOf encodes relative names with these attributes.
func subjectOf(t *testing.T, relative ...[]part) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, parts := range relative {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				for _, p := range parts {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(p.kind)
						b.AddASN1(p.tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(p.value)) })
					})
				}
			})
		}
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func cn(tag cbasn1.Tag, value string) []part { return []part{{commonName, tag, value}} }

// root is a root with its key.
type root struct {
	certificate *x509.Certificate
	key         issuer.PrivateKey
}

func rootOf(t *testing.T, rawSubject []byte) root {
	t.Helper()
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, RawSubject: rawSubject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("%x: %v", rawSubject, err)
	}
	return root{certificate, key}
}

// leaf returns the PEM of a certificate that the root signs.
func (r root) leaf(t *testing.T) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.certificate, r.key.Public(), r.key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// oddSubjects are subjects that OpenSSL's canonical encoding changes.
func oddSubjects(t *testing.T) map[string][]byte {
	const printable, utf8, t61, ia5, numeric, bmp = cbasn1.PrintableString, cbasn1.UTF8String, cbasn1.T61String, cbasn1.IA5String, cbasn1.Tag(18), cbasn1.Tag(30)
	return map[string][]byte{
		"printable": subjectOf(t, cn(printable, "Root CA")),
		"the same in UTF-8, with blanks and upper case": subjectOf(t, cn(utf8, "  ROOT \t  CA ")),
		"the same in T61":                      subjectOf(t, cn(t61, "root CA")),
		"the same in BMP":                      subjectOf(t, cn(bmp, "\x00R\x00o\x00o\x00t\x00 \x00 \x00C\x00A")),
		"UTF-8":                                subjectOf(t, cn(utf8, "Größe ÄÖÜ  Ünï 東京 𝒳")),
		"T61, as Latin 1":                      subjectOf(t, cn(t61, "Gr\xf6\xdfe \xc4")),
		"BMP":                                  subjectOf(t, cn(bmp, "\x67\x71\x4e\xac\x00 \x00 \x00A\x00\xc4")),
		"IA5":                                  subjectOf(t, []part{{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, ia5, "CA@Example.COM"}}),
		"numeric":                              subjectOf(t, cn(numeric, "12  34")),
		"only blanks":                          subjectOf(t, cn(utf8, "   ")),
		"no text":                              subjectOf(t, cn(utf8, "")),
		"empty":                                subjectOf(t),
		"several":                              subjectOf(t, []part{{country, printable, "DE"}}, []part{{organization, utf8, "Example  GmbH"}}, cn(utf8, "Root")),
		"several in one, in another order":     subjectOf(t, []part{{commonName, utf8, "AA"}, {organization, utf8, "Z"}, {commonName, utf8, "b"}}),
		"sorted by other types":                subjectOf(t, []part{{commonName, printable, "zzzz"}, {commonName, utf8, "a a  a"}}),
		"no ASCII white space":                 subjectOf(t, cn(utf8, "\u00a0a\u00a0b\u2003c\u0085")),
		"line feeds, and other control codes":  subjectOf(t, cn(utf8, "\va\f\r\nb\x1c\x7f")),
		"as long as two bytes of length":       subjectOf(t, cn(utf8, strings.Repeat("Long name ", 40))),
		"Turkish letters, which keep the case": subjectOf(t, cn(utf8, "İIıi")),
	}
}

// A directory has the names that openssl rehash gives, and OpenSSL verifies by it. Of roots
// with the same subject, OpenSSL finds each.
func TestCADirectory(t *testing.T) {
	plain, byName := t.TempDir(), map[string]root{}
	var roots []*x509.Certificate
	for name, subject := range oddSubjects(t) {
		r := rootOf(t, subject)
		byName[name], roots = r, append(roots, r.certificate)
		file := filepath.Join(plain, fmt.Sprintf("root-%02d.pem", len(roots)))
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.certificate.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := attributes.Attributes{TrustOnly: true, Files: attributes.Files{CA: "ca.crt", CADirectory: "certs"}, Mode: 0o444}
	volume := openRoot(t)
	files, err := payload.EncodeTrust(issuer.Roots{Own: roots}, a, payload.Password{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, volume, files)
	directory := filepath.Join(volume.Name(), "certs")
	if link, err := os.Readlink(directory); err != nil || link != "..data/certs" {
		t.Errorf("the link: %q, %v", link, err)
	}

	openssl(t, "rehash", plain)
	var want []string
	for _, name := range namesIn(t, plain) {
		if !strings.HasSuffix(name, ".pem") {
			want = append(want, name)
		}
	}
	if got := namesIn(t, directory); !slices.Equal(got, want) {
		t.Errorf("the names are\n%q, and openssl rehash gives\n%q", got, want)
	}
	for name, r := range byName {
		leaf := filepath.Join(t.TempDir(), "leaf.pem")
		if err := os.WriteFile(leaf, r.leaf(t), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("openssl", "verify", "-no-CAfile", "-no-CAstore", "-CApath", directory, leaf).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	set, err := payload.OpenSet(volume)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	if err := payload.CheckRootsDirectory(set, "certs", roots); err != nil {
		t.Error(err)
	}
}

func namesIn(t *testing.T, directory string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func openssl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, out)
	}
}

// A subject that OpenSSL cannot read is an error, and makes no wrong name.
func TestSubjectsThatCannotBeHashed(t *testing.T) {
	for name, subject := range map[string][]byte{
		"an odd number of bytes": subjectOf(t, cn(30, "\x00a\x00")),
		"a surrogate":            subjectOf(t, cn(30, "\xd8\x00")),
		"not UTF-8":              subjectOf(t, cn(cbasn1.UTF8String, "\xff")),
		"rubbish":                []byte("rubbish"),
	} {
		roots := issuer.Roots{Own: []*x509.Certificate{{RawSubject: subject}}}
		a := attributes.Attributes{TrustOnly: true, Files: attributes.Files{CA: "ca.crt", CADirectory: "certs"}}
		if _, err := payload.EncodeTrust(roots, a, payload.Password{}); err == nil || !strings.Contains(err.Error(), "encode certs: root ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What another process puts into the directories of a set is removed with it, one level deep
// and within limits, or else is an error.
func TestForeignFilesInADirectory(t *testing.T) {
	a := attributes.Attributes{TrustOnly: true, Files: attributes.Files{CA: "ca.crt", CADirectory: "certs"}, Mode: 0o444}
	roots := []*x509.Certificate{rootOf(t, subjectOf(t, cn(cbasn1.UTF8String, "a"))).certificate, rootOf(t, subjectOf(t, cn(cbasn1.UTF8String, "b"))).certificate}
	files, err := payload.EncodeTrust(issuer.Roots{Own: roots}, a, payload.Password{})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(directory string) error
		// wrong is a part of the error of CheckRootsDirectory, and stuck means that Write fails.
		wrong string
		stuck bool
	}{
		"nothing":            {func(string) error { return nil }, "", false},
		"one file more":      {func(d string) error { return os.WriteFile(d+"/x", nil, 0o600) }, "3 files, and there are 2 roots", false},
		"a missing file":     {func(d string) error { return os.Remove(firstIn(d)) }, "1 files, and there are 2 roots", false},
		"another name":       {func(d string) error { return os.Rename(firstIn(d), d+"/00000000.0") }, "not the hash of the subject", false},
		"the same twice":     {func(d string) error { return errorsOf(os.Remove(firstIn(d)), os.Link(firstIn(d), firstIn(d)+"1")) }, "twice", false},
		"an empty file":      {func(d string) error { return os.Truncate(firstIn(d), 0) }, "has no certificate", false},
		"a FIFO":             {func(d string) error { return errorsOf(os.Remove(firstIn(d)), syscall.Mkfifo(d+"/0.0", 0o600)) }, "", false},
		"a link elsewhere":   {func(d string) error { return errorsOf(os.Remove(firstIn(d)), os.Symlink("/etc/passwd", d+"/0.0")) }, "", false},
		"an empty directory": {func(d string) error { return os.Mkdir(d+"/x", 0o700) }, "3 files", false},
		"a full directory":   {func(d string) error { return os.MkdirAll(d+"/x/y", 0o700) }, "3 files", true},
		"many names": {func(d string) error {
			for i := range 2100 {
				if err := os.Link(firstIn(d), fmt.Sprintf("%s/ffffffff.%d", d, i)); err != nil {
					return err
				}
			}
			return nil
		}, "more than 2048 names", true},
		"a file instead":      {func(d string) error { return errorsOf(os.RemoveAll(d), os.WriteFile(d, nil, 0o600)) }, "not a directory", false},
		"a FIFO instead":      {func(d string) error { return errorsOf(os.RemoveAll(d), syscall.Mkfifo(d, 0o600)) }, "not a directory", false},
		"a link instead":      {func(d string) error { return errorsOf(os.RemoveAll(d), os.Symlink("/", d)) }, "escapes", false},
		"a link to the other": {func(d string) error { return errorsOf(os.RemoveAll(d), os.Symlink(".", d)) }, "", false},
		"nothing instead":     {os.RemoveAll, "no such file", false},
	} {
		t.Run(name, func(t *testing.T) {
			volume := openRoot(t)
			write(t, volume, files)
			link, err := volume.Readlink(payload.DataLink)
			if err != nil {
				t.Fatal(err)
			}
			if err := test.change(filepath.Join(volume.Name(), link, "certs")); err != nil {
				t.Fatal(err)
			}
			set, err := payload.OpenSet(volume)
			if err != nil {
				t.Fatal(err)
			}
			defer set.Close()
			err = payload.CheckRootsDirectory(set, "certs", roots)
			if (err == nil) != (name == "nothing") || err != nil && !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("CheckRootsDirectory: %v", err)
			}
			write(t, volume, files) // keeps the set for readers
			err = payload.Write(volume, files, open)
			if (err != nil) != test.stuck {
				t.Errorf("Write: %v", err)
			}
			if _, gone := volume.Lstat(link); !test.stuck && !os.IsNotExist(gone) {
				t.Errorf("the set is left: %v", gone)
			}
			if got := namesIn(t, filepath.Join(volume.Name(), "certs")); len(got) != 2 {
				t.Errorf("%q", got)
			}
		})
	}
}

func firstIn(directory string) string {
	entries, err := fs.ReadDir(os.DirFS(directory), ".")
	if err != nil || len(entries) == 0 {
		return directory
	}
	return filepath.Join(directory, entries[0].Name())
}

func errorsOf(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}
