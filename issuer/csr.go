package issuer

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/flexstack/step-csi/issuer/names"
)

// NewCSR returns a CSR for exactly the names of req, signed by key.
func NewCSR(req Request, key crypto.Signer) (*x509.CertificateRequest, error) {
	template := &x509.CertificateRequest{
		DNSNames:       names.Texts(req.DNSNames),
		EmailAddresses: names.Texts(req.EmailAddresses),
	}
	template.Subject.CommonName = req.CommonName.String()
	for _, ip := range req.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.Addr().AsSlice()))
	}
	for _, uri := range req.URIs {
		template.URIs = append(template.URIs, uri.URL())
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("create the CSR: %w", err)
	}
	return x509.ParseCertificateRequest(der)
}

// ReadCSR parses a CSR that NewCSR has created in another process, in DER, and
// returns what it requests. It rejects names in other spellings than that of
// package names, and everything that is not in the returned Request: a policy that
// allows the Request has seen all that is in the CSR.
func ReadCSR(der []byte, duration time.Duration) (*x509.CertificateRequest, Request, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, Request{}, fmt.Errorf("parse the CSR: %w", err)
	}
	keyType, known := keyTypeOf(csr.PublicKey)
	if !known {
		return nil, Request{}, fmt.Errorf("the CSR has a key of another type than %s", KeyTypes())
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, Request{}, fmt.Errorf("the CSR's signature: %w", err)
	}
	req, err := namesOf(csr)
	if err != nil {
		return nil, Request{}, err
	}
	req.Duration, req.KeyType = duration, keyType
	return csr, req, checkOnly(csr, req)
}

func namesOf(csr *x509.CertificateRequest) (req Request, err error) {
	if cn := csr.Subject.CommonName; cn != "" {
		if req.CommonName, err = names.ParseCommonName(cn); err != nil {
			return req, fmt.Errorf("the CSR's common name: %w", err)
		}
	}
	if req.DNSNames, err = names.ParseAll(names.Exactly(names.ParseDNSName), csr.DNSNames...); err != nil {
		return req, fmt.Errorf("the CSR's DNS name: %w", err)
	}
	for _, ip := range csr.IPAddresses {
		address, _ := netip.AddrFromSlice(ip) // crypto/x509 accepts no other sizes
		parsed, err := names.ParseIP(address.String())
		if err != nil {
			return req, fmt.Errorf("the CSR's IP address: %w", err)
		}
		req.IPAddresses = append(req.IPAddresses, parsed)
	}
	if req.URIs, err = names.ParseAll(names.ParseURI, names.Texts(csr.URIs)...); err != nil {
		return req, fmt.Errorf("the CSR's URI: %w", err)
	}
	if req.EmailAddresses, err = names.ParseAll(names.ParseEmailAddress, csr.EmailAddresses...); err != nil {
		return req, fmt.Errorf("the CSR's e-mail address: %w", err)
	}
	return req, nil
}

// checkOnly requires that the CSR contains, besides its key, what NewCSR creates
// for req and nothing else. The encoding may differ where the meaning cannot: in
// the string type of the common name, and in the order of the alternative names.
// Node and authority may be built with different releases of Go.
func checkOnly(csr *x509.CertificateRequest, req Request) error {
	throwaway := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	rebuilt, err := NewCSR(req, throwaway)
	if err != nil {
		return err
	}
	want, err := contentsOf(rebuilt)
	if err != nil {
		return err
	}
	got, err := contentsOf(csr)
	if err == nil && !got.equal(want) {
		err = errors.New("its contents differ from those of a CSR for its common name and alternative names")
	}
	if err != nil {
		return fmt.Errorf("the CSR requests more than a common name and subject alternative names, or encodes them in an unusual way: %w", err)
	}
	return nil
}
