package issuer

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// NewCSR returns a CSR for exactly the names of req, signed by key.
func NewCSR(req Request, key crypto.Signer) (*x509.CertificateRequest, error) {
	template := &x509.CertificateRequest{
		DNSNames:       req.DNSNames,
		URIs:           req.URIs,
		EmailAddresses: req.EmailAddresses,
	}
	template.Subject.CommonName = req.CommonName
	for _, ip := range req.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("make the CSR: %w", err)
	}
	return x509.ParseCertificateRequest(der)
}

// ReadCSR reads a CSR that NewCSR has made elsewhere, in DER, and returns what
// it asks for. It refuses any other: whoever sees the Request has seen all that
// is in the CSR.
func ReadCSR(der []byte, duration time.Duration) (*x509.CertificateRequest, Request, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, Request{}, fmt.Errorf("the CSR cannot be read: %w", err)
	}
	keyType, known := keyTypeOf(csr.PublicKey)
	if !known {
		return nil, Request{}, errors.New("the CSR has a key of a type that is not given here")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, Request{}, fmt.Errorf("the CSR's signature: %w", err)
	}
	req := Request{
		CommonName:     csr.Subject.CommonName,
		DNSNames:       csr.DNSNames,
		URIs:           csr.URIs,
		EmailAddresses: csr.EmailAddresses,
		Duration:       duration,
		KeyType:        keyType,
	}
	for _, ip := range csr.IPAddresses {
		address, _ := netip.AddrFromSlice(ip) // crypto/x509 lets no other sizes through
		req.IPAddresses = append(req.IPAddresses, address)
	}
	return csr, req, checkOnly(csr, req)
}

// checkOnly demands that the CSR is, but for its key, byte by byte what NewCSR
// makes of req: there is nothing in it that could be read in another way, or
// that this package does not know.
func checkOnly(csr *x509.CertificateRequest, req Request) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	again, err := NewCSR(req, key)
	if err != nil {
		return err
	}
	if csr.Version != again.Version || !bytes.Equal(csr.RawSubject, again.RawSubject) || !bytes.Equal(afterKey(csr), afterKey(again)) {
		return errors.New("the CSR asks for more than a common name and subject alternative names, or writes them in another way than usual")
	}
	return nil
}

// afterKey is what follows the public key in a CSR: the attributes, and in them
// the extensions. See RFC 2986, section 4.1.
func afterKey(csr *x509.CertificateRequest) []byte {
	_, after, _ := bytes.Cut(csr.RawTBSCertificateRequest, csr.RawSubjectPublicKeyInfo)
	return after
}
