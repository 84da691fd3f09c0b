package issuer

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
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
// that this package does not know. See RFC 2986, section 4.1.
func checkOnly(csr *x509.CertificateRequest, req Request) error {
	subject, attributes, err := encode(req)
	if err != nil {
		return err
	}
	_, after, _ := bytes.Cut(csr.RawTBSCertificateRequest, csr.RawSubjectPublicKeyInfo)
	if csr.Version != 0 || !bytes.Equal(csr.RawSubject, subject) || !bytes.Equal(after, attributes) {
		return errors.New("the CSR asks for more than a common name and subject alternative names, or writes them in another way than usual")
	}
	return nil
}

var oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}

// The types of a GeneralName; see RFC 5280, section 4.2.1.6.
const (
	tagEmail = 1
	tagDNS   = 2
	tagURI   = 6
	tagIP    = 7
)

// encode writes the subject and the attributes of a CSR as crypto/x509 does.
func encode(req Request) (subject, attributes []byte, err error) {
	name := pkix.Name{CommonName: req.CommonName}
	if subject, err = asn1.Marshal(name.ToRDNSequence()); err != nil {
		return nil, nil, err
	}
	var names []asn1.RawValue
	add := func(tag int, value []byte) {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: value})
	}
	for _, dns := range req.DNSNames {
		add(tagDNS, []byte(dns))
	}
	for _, email := range req.EmailAddresses {
		add(tagEmail, []byte(email))
	}
	for _, ip := range req.IPAddresses {
		add(tagIP, ip.AsSlice())
	}
	for _, uri := range req.URIs {
		add(tagURI, []byte(uri.String()))
	}
	var requests []asn1.RawValue
	if len(names) > 0 {
		request, err := encodeExtensions(names)
		if err != nil {
			return nil, nil, err
		}
		requests = append(requests, asn1.RawValue{FullBytes: request})
	}
	attributes, err = asn1.MarshalWithParams(requests, "tag:0,set")
	return subject, attributes, err
}

// encodeExtensions is the attribute that asks for the one extension.
func encodeExtensions(names []asn1.RawValue) ([]byte, error) {
	san, err := asn1.Marshal(names)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		Type  asn1.ObjectIdentifier
		Value [][]pkix.Extension `asn1:"set"`
	}{oidExtensionRequest, [][]pkix.Extension{{{Id: oidSubjectAltName, Value: san}}}})
}
