package main

import (
	"cmp"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/trust"
)

const verifyUsage = `Usage: step-csi verify [flags] DIRECTORY

Verifies a volume: the mount is read-only, the files belong together, the key is
the certificate's, and the certificate leads to one of the roots, for servers and
clients, over a chain that is valid now. In a copy of the files, only the files are verified.
It prints the fields of the certificate, and exits with status 1 if a check fails.
The line "limited to" is about an intermediate or a root that expires before the
certificate: peers reject the certificate from then on.
The line X.509-SVID has the SPIFFE ID, or the reason why the certificate is none.

With --trust-only, for a volume that has only roots, it checks the mount and the roots,
and prints them.
`

func verify(args []string, stdout, stderr io.Writer) error {
	var files attributes.Files
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	flags.StringVar(&files.Certificate, "certificate-file", "tls.crt", "file `NAME` of the certificate")
	flags.StringVar(&files.PrivateKey, "privatekey-file", "tls.key", "file `NAME` of the private key")
	flags.StringVar(&files.CA, "ca-file", "ca.crt", "file `NAME` of the roots")
	flags.StringVar(&files.CADirectory, "ca-directory", "", "`NAME` of the directory of roots, if the volume has one")
	trustOnly := flags.Bool("trust-only", false, "the volume has only roots, and no certificate")
	if err := parseFlags(flags, 1, verifyUsage, args, stdout, stderr); err != nil {
		return err
	}
	if *trustOnly {
		return verifyTrust(stdout, flags.Arg(0), attributes.Files{CA: files.CA, CADirectory: files.CADirectory})
	}
	return verifyVolume(stdout, flags.Arg(0), files)
}

// verifyTrust checks a volume with trust only, and prints its roots. Expired ones are no error:
// programs do not use them.
func verifyTrust(stdout io.Writer, directory string, names attributes.Files) error {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer root.Close()
	roots, err := volume.CheckTrust(root, names)
	now := time.Now()
	for _, c := range roots {
		fmt.Fprintf(stdout, "%-13s %s\n%-13s SHA-256 %s; not after %s, %s\n", "root", cmp.Or(printable(c.Subject.String()), "-"),
			"", trust.Fingerprint(c), c.NotAfter.UTC().Format(time.RFC3339), remaining(c.NotAfter.Sub(now)))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", directory, err)
	}
	found := "1 root"
	if len(roots) != 1 {
		found = fmt.Sprintf("%d roots", len(roots))
	}
	fmt.Fprintf(stdout, "%-13s %s in %s\n", "verified", found, filepath.Join(directory, names.CA))
	return nil
}

// verifyVolume checks the volume, and verifies its certificate as a TLS server and a
// TLS client would.
func verifyVolume(stdout io.Writer, directory string, names attributes.Files) error {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer root.Close()
	contents, err := volume.Check(root, names)
	if _, missing := root.Stat(names.Certificate); errors.Is(missing, fs.ErrNotExist) {
		if _, roots := root.Stat(names.CA); roots == nil {
			err = fmt.Errorf("%w; if the volume has only roots, add --trust-only", err)
		}
	}
	if contents != nil {
		describe(stdout, contents, time.Now())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", directory, err)
	}
	keyFile, caFile := filepath.Join(directory, names.PrivateKey), filepath.Join(directory, names.CA)
	info, err := os.Stat(keyFile)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%-13s %s, mode %#o\n", "key file", keyFile, info.Mode().Perm())
	if err := contents.Verify(time.Now(), x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth); err != nil {
		return fmt.Errorf("%s with the roots of %s: %w", filepath.Join(directory, names.Certificate), caFile, err)
	}
	fmt.Fprintf(stdout, "%-13s the key is the certificate's, and the chain ends at a root of %s\n", "verified", caFile)
	return nil
}

// describe prints the fields of the certificate, and which certificate limits it.
func describe(w io.Writer, contents *volume.Contents, now time.Time) {
	leaf := contents.Leaf
	line := func(name string, values ...string) {
		for _, value := range values {
			fmt.Fprintf(w, "%-13s %s\n", name, value)
			name = ""
		}
	}
	id, err := svid(leaf)
	if err != nil {
		id = "no: " + err.Error()
	}
	line("common name", leaf.Subject.CommonName)
	if len(leaf.Subject.Names) > 1 {
		line("subject", printable(leaf.Subject.String()))
	}
	line("DNS names", leaf.DNSNames...)
	line("IP addresses", names.Texts(leaf.IPAddresses)...)
	line("URIs", names.Texts(leaf.URIs)...)
	line("e-mail", leaf.EmailAddresses...)
	line("X.509-SVID", id)
	line("serial", leaf.SerialNumber.String())
	line("issuer", leaf.Issuer.CommonName)
	line("not before", leaf.NotBefore.UTC().Format(time.RFC3339))
	line("not after", leaf.NotAfter.UTC().Format(time.RFC3339)+", "+remaining(leaf.NotAfter.Sub(now)))
	if limitedBy := contents.Chain.LimitedBy(); limitedBy != "" {
		expiry := contents.Chain.NotAfter()
		line("limited to", expiry.UTC().Format(time.RFC3339)+", "+remaining(expiry.Sub(now)), "by "+limitedBy)
	}
}

func remaining(d time.Duration) string {
	d = d.Round(time.Second)
	if d < 0 {
		return "expired since " + (-d).String()
	}
	return "another " + d.String()
}

// svid returns the SPIFFE ID of a leaf that is an X.509-SVID. Otherwise, the error
// says why the leaf is not an X.509-SVID. svid does not verify the chain or the
// extended key usages. See
// https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md.
func svid(leaf *x509.Certificate) (string, error) {
	switch {
	case len(leaf.URIs) == 0:
		return "", errors.New("it has no URI, so no SPIFFE ID")
	case len(leaf.URIs) > 1:
		return "", fmt.Errorf("it has %d URIs; the SPIFFE ID must be the only one", len(leaf.URIs))
	case leaf.IsCA:
		return "", errors.New("it is a CA certificate")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "", errors.New("its key usage has keyCertSign or cRLSign, which are for CAs")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "", errors.New("its key usage lacks digitalSignature")
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err == nil && id.Path() == "" {
		err = errors.New("it has no path")
	}
	if err != nil {
		return "", fmt.Errorf("its URI %s is not a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/web: %w", leaf.URIs[0], err)
	}
	return id.String(), nil
}
