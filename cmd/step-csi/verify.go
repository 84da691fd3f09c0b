package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/flexstack/step-csi/issuer/names"
)

const verifyUsage = `Usage: step-csi verify [flags] DIRECTORY

Verifies what a volume holds: that the key is the certificate's, and that the
certificate is valid now and signed by one of the roots, for servers and clients.
It prints what the certificate says, and exits with 1 if anything is wrong. The
line X.509-SVID has the SPIFFE ID, or the reason why the certificate is none.

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
	return verifyFiles(stdout, filepath.Join(flags.Arg(0), *certificate), filepath.Join(flags.Arg(0), *key), filepath.Join(flags.Arg(0), *ca))
}

// verifyFiles names the file that is wrong in each error.
func verifyFiles(stdout io.Writer, certificateFile, keyFile, caFile string) error {
	var contents [3][]byte
	for i, file := range []string{certificateFile, keyFile, caFile} {
		var err error
		if contents[i], err = os.ReadFile(file); err != nil {
			return err
		}
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return fmt.Errorf("%s with %s: %w", certificateFile, keyFile, err)
	}
	describe(stdout, pair.Leaf, time.Now())
	fmt.Fprintf(stdout, "%-13s %s, mode %#o\n", "key file", keyFile, info.Mode().Perm())
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(contents[2]) {
		return fmt.Errorf("%s: there is no certificate in it", caFile)
	}
	if err := verifyChain(pair, roots); err != nil {
		return fmt.Errorf("%s with the roots of %s: %w", certificateFile, caFile, err)
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

// verifyChain verifies as a TLS server and a TLS client would.
func verifyChain(pair tls.Certificate, roots *x509.CertPool) error {
	intermediates := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		intermediate, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		intermediates.AddCert(intermediate)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return err
		}
	}
	return nil
}
