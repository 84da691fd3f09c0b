package issuer

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
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
func ReadCSR(der []byte, duration time.Duration) (csr *x509.CertificateRequest, req Request, err error) {
	req.Duration = duration
	if csr, err = x509.ParseCertificateRequest(der); err != nil {
		return nil, req, fmt.Errorf("parse the CSR: %w", err)
	}
	var known bool
	if req.KeyType, known = keyTypeOf(csr.PublicKey); !known {
		return nil, req, fmt.Errorf("the CSR has a key of another type than %s", KeyTypes())
	}
	if err = csr.CheckSignature(); err != nil {
		return nil, req, fmt.Errorf("the CSR's signature: %w", err)
	}
	if cn := csr.Subject.CommonName; cn != "" {
		if req.CommonName, err = names.ParseCommonName(cn); err != nil {
			return nil, req, fmt.Errorf("the CSR's common name: %w", err)
		}
	}
	if req.DNSNames, err = names.ParseAll(names.Exactly(names.ParseDNSName), csr.DNSNames...); err != nil {
		return nil, req, fmt.Errorf("the CSR's DNS name: %w", err)
	}
	for _, ip := range csr.IPAddresses {
		address, _ := netip.AddrFromSlice(ip) // crypto/x509 accepts no other sizes
		parsed, err := names.ParseIP(address.String())
		if err != nil {
			return nil, req, fmt.Errorf("the CSR's IP address: %w", err)
		}
		req.IPAddresses = append(req.IPAddresses, parsed)
	}
	if req.URIs, err = names.ParseAll(names.ParseURI, names.Texts(csr.URIs)...); err != nil {
		return nil, req, fmt.Errorf("the CSR's URI: %w", err)
	}
	if req.EmailAddresses, err = names.ParseAll(names.ParseEmailAddress, csr.EmailAddresses...); err != nil {
		return nil, req, fmt.Errorf("the CSR's e-mail address: %w", err)
	}
	return csr, req, checkOnly(csr, req)
}

// checkOnly requires that the CSR contains, besides its key, what NewCSR creates
// for req and nothing else. The encoding may differ where the meaning cannot: in
// the string type of the common name, and in the order of the alternative names.
// Node and authority may be built with different releases of Go. See RFC 2986,
// section 4.1.
func checkOnly(csr *x509.CertificateRequest, req Request) error {
	want, err := NewCSR(req, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		return err
	}
	// Parsers ignore what they do not know, but re-encoding shows it.
	_, attributes, _ := bytes.Cut(csr.RawTBSCertificateRequest, csr.RawSubjectPublicKeyInfo)
	if csr.Version != 0 || !isSubject(csr.RawSubject, req.CommonName) ||
		!slices.EqualFunc(csr.Extensions, want.Extensions, sameSANs) || !bytes.Equal(attributes, encodeAttributes(csr.Extensions)) {
		return errors.New("the CSR requests more than a common name and subject alternative names, or encodes them in an unusual way")
	}
	return nil
}

// isSubject reports whether the DER is a subject with the common name only.
func isSubject(der []byte, commonName names.CommonName) bool {
	if commonName == (names.CommonName{}) {
		return bytes.Equal(der, encode(pkix.RDNSequence{}, ""))
	}
	return slices.ContainsFunc([]int{asn1.TagPrintableString, asn1.TagUTF8String}, func(tag int) bool {
		value := asn1.RawValue{Tag: tag, Bytes: []byte(commonName.String())}
		return bytes.Equal(der, encode(pkix.RDNSequence{{{Type: oidCommonName, Value: value}}}, ""))
	})
}

// sameSANs reports whether both extensions have the same alternative names, in any
// order.
func sameSANs(a, b pkix.Extension) bool {
	return a.Id.Equal(b.Id) && a.Critical == b.Critical && slices.Equal(elements(a.Value), elements(b.Value))
}

// elements returns the encoded elements of a SEQUENCE, sorted.
func elements(der []byte) (all []string) {
	var values []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &values); err != nil || len(rest) > 0 {
		return nil
	}
	for _, value := range values {
		all = append(all, string(value.FullBytes))
	}
	slices.Sort(all)
	return all
}

var (
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
)

// attribute is the attribute of a CSR that requests extensions.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value [][]pkix.Extension `asn1:"set"`
}

func encodeAttributes(extensions []pkix.Extension) []byte {
	var all []attribute
	if len(extensions) > 0 {
		all = append(all, attribute{oidExtensionRequest, [][]pkix.Extension{extensions}})
	}
	return encode(all, "tag:0,set")
}

func encode(value any, params string) []byte {
	der, _ := asn1.MarshalWithParams(value, params) // nil, which equals no DER, if there is an error
	return der
}
