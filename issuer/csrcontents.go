package issuer

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"reflect"
)

// csrContents is all that a CSR contains besides its key and its signature. Two
// CSRs with equal contents have the same meaning. See RFC 2986, section 4.1.
type csrContents struct {
	commonName string
	// names counts the alternative names by their encoding.
	names map[string]int
}

func (c csrContents) equal(other csrContents) bool {
	return c.commonName == other.commonName && maps.Equal(c.names, other.names)
}

var (
	oidCommonName       = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}
)

// rdnSET is one RelativeDistinguishedName; encoding/asn1 needs the "SET".
type rdnSET []struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// csrAttribute is an attribute of the type extensionRequest.
type csrAttribute struct {
	Type  asn1.ObjectIdentifier
	Value [][]pkix.Extension `asn1:"set"`
}

// contentsOf rejects a CSR with anything else than at most one common name and at
// most one extension, that of the alternative names.
func contentsOf(csr *x509.CertificateRequest) (c csrContents, err error) {
	if csr.Version != 0 {
		return c, fmt.Errorf("its version is %d instead of 0", csr.Version)
	}
	if c.commonName, err = commonNameOf(csr.RawSubject); err != nil {
		return c, fmt.Errorf("its subject: %w", err)
	}
	// Nothing comes after the attributes. Nothing comes before the version.
	_, attributes, _ := bytes.Cut(csr.RawTBSCertificateRequest, csr.RawSubjectPublicKeyInfo)
	if c.names, err = alternativeNamesOf(attributes); err != nil {
		return c, fmt.Errorf("its attributes: %w", err)
	}
	return c, nil
}

func commonNameOf(der []byte) (string, error) {
	var subject []rdnSET
	if err := unmarshalAll(der, &subject, ""); err != nil {
		return "", err
	}
	if len(subject) == 0 {
		return "", nil
	}
	if len(subject) > 1 || len(subject[0]) != 1 || !subject[0][0].Type.Equal(oidCommonName) {
		return "", errors.New("it has more than a common name")
	}
	switch value := subject[0][0].Value; {
	case value.Class != asn1.ClassUniversal || value.Tag != asn1.TagPrintableString && value.Tag != asn1.TagUTF8String:
		return "", errors.New("the common name is neither a PrintableString nor a UTF8String")
	case len(value.Bytes) == 0:
		return "", errors.New("the common name is empty")
	default:
		return string(value.Bytes), nil
	}
}

func alternativeNamesOf(der []byte) (map[string]int, error) {
	var attributes []csrAttribute
	if err := unmarshalAll(der, &attributes, "tag:0,set"); err != nil {
		return nil, err
	}
	if len(attributes) == 0 {
		return nil, nil
	}
	if len(attributes) > 1 || !attributes[0].Type.Equal(oidExtensionRequest) || len(attributes[0].Value) != 1 || len(attributes[0].Value[0]) != 1 {
		return nil, errors.New("they have more than one extension")
	}
	extension := attributes[0].Value[0][0]
	if !extension.Id.Equal(oidSubjectAltName) || extension.Critical {
		return nil, fmt.Errorf("the extension %s (critical: %t) is not that of the subject alternative names", extension.Id, extension.Critical)
	}
	var all []asn1.RawValue
	if err := unmarshalAll(extension.Value, &all, ""); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("the list of subject alternative names is empty")
	}
	names := map[string]int{}
	for _, name := range all {
		names[string(name.FullBytes)]++
	}
	return names, nil
}

// unmarshalAll parses DER without ignoring any of it: encoding/asn1 accepts more
// elements at the end of a SEQUENCE than a struct has fields.
func unmarshalAll(der []byte, value any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, value, params)
	if err != nil {
		return err
	}
	again, err := asn1.MarshalWithParams(reflect.ValueOf(value).Elem().Interface(), params)
	if err != nil {
		return err
	}
	if len(rest) > 0 || !bytes.Equal(again, der) {
		return errors.New("there is data in it that is not parsed, or it is not DER")
	}
	return nil
}
