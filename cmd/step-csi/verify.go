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
	"strings"
	"time"
)

const verifyUsage = `Usage: step-csi verify [flags] DIRECTORY

Verifies what a volume holds: that the key is the certificate's, and that the
certificate is valid now and signed by one of the roots, for servers and clients.
It prints what the certificate says, and exits with 1 if anything is wrong.

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
	file := func(name string) string { return filepath.Join(flags.Arg(0), name) }
	pair, err := tls.LoadX509KeyPair(file(*certificate), file(*key))
	if err != nil {
		return err
	}
	describe(stdout, pair.Leaf)
	roots, err := os.ReadFile(file(*ca))
	if err != nil {
		return err
	}
	if err := verifyChain(pair, roots); err != nil {
		return fmt.Errorf("%s: %w", file(*certificate), err)
	}
	fmt.Fprintln(stdout, "verified     the key is the certificate's, and the chain ends at a root of", *ca)
	return nil
}

func describe(w io.Writer, leaf *x509.Certificate) {
	names := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, uri := range leaf.URIs {
		names = append(names, uri.String())
	}
	names = append(names, leaf.EmailAddresses...)
	fmt.Fprintf(w, "common name  %s\nnames        %s\nissuer       %s\nserial       %s\nvalid        %s to %s, another %s\n",
		leaf.Subject.CommonName, strings.Join(names, "\n             "), leaf.Issuer.CommonName, leaf.SerialNumber,
		leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), time.Until(leaf.NotAfter).Round(time.Second))
}

// verifyChain verifies as a TLS server and a TLS client would.
func verifyChain(pair tls.Certificate, rootsPEM []byte) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return errors.New("the file with the roots holds no certificate")
	}
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
