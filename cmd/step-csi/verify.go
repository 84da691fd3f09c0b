package main

import (
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/names"
)

const verifyUsage = `Usage: step-csi verify [flags] DIRECTORY

Verifies a volume: the mount is read-only, the files belong together, the key is
the certificate's, and the certificate is valid now and leads to one of the roots,
for servers and clients. In a copy of the files, only the files are verified.
It prints what the certificate says, and exits with 1 if anything is wrong. The
line X.509-SVID has the SPIFFE ID, or the reason why the certificate has none.

Flags:

  --certificate-file NAME   (tls.crt)
  --privatekey-file NAME    (tls.key)
  --ca-file NAME            (ca.crt)
`

// verify is the verify command.
func verify(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	certificate := flags.String("certificate-file", "tls.crt", "")
	key := flags.String("privatekey-file", "tls.key", "")
	ca := flags.String("ca-file", "ca.crt", "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, verifyUsage)
		return err
	case err == nil && flags.NArg() != 1:
		err = errors.New("name one directory")
	}
	if err != nil {
		fmt.Fprintf(stderr, "step-csi verify: %v\n\n%s", err, verifyUsage)
		return errUsage
	}
	return verifyVolume(stdout, flags.Arg(0), payload.Names{Certificate: *certificate, PrivateKey: *key, CA: *ca})
}

// verifyVolume checks the volume, and verifies its certificate as a TLS server and a
// TLS client would.
func verifyVolume(stdout io.Writer, directory string, names payload.Names) error {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer root.Close()
	contents, err := volume.Check(root, names)
	if contents != nil {
		describe(stdout, contents.Leaf, time.Now())
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

// describe prints a line for each thing that the certificate says.
func describe(w io.Writer, leaf *x509.Certificate, now time.Time) {
	line := func(name string, values ...string) {
		for _, value := range values {
			fmt.Fprintf(w, "%-13s %s\n", name, value)
			name = ""
		}
	}
	line("common name", leaf.Subject.CommonName)
	line("DNS names", leaf.DNSNames...)
	line("IP addresses", names.Texts(leaf.IPAddresses)...)
	line("URIs", names.Texts(leaf.URIs)...)
	line("e-mail", leaf.EmailAddresses...)
	line("X.509-SVID", describeSVID(leaf))
	line("serial", leaf.SerialNumber.String())
	line("issuer", leaf.Issuer.CommonName)
	line("not before", leaf.NotBefore.UTC().Format(time.RFC3339))
	line("not after", leaf.NotAfter.UTC().Format(time.RFC3339)+", "+remaining(leaf.NotAfter.Sub(now)))
}

func remaining(d time.Duration) string {
	d = d.Round(time.Second)
	if d < 0 {
		return "expired since " + (-d).String()
	}
	return "another " + d.String()
}
