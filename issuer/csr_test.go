package issuer_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"reflect"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

func TestReadCSRReversesNewCSR(t *testing.T) {
	for _, keyType := range issuer.KeyTypes() {
		req := request()
		req.KeyType = keyType
		key, err := keyType.Generate()
		if err != nil {
			t.Fatal(err)
		}
		made, err := issuer.NewCSR(req, key)
		if err != nil {
			t.Fatal(err)
		}
		csr, got, err := issuer.ReadCSR(made.Raw, req.Duration)
		if err != nil || !reflect.DeepEqual(got, req) || !csr.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Errorf("%s: %v\n%+v\nof\n%+v", keyType, err, got, req)
		}
	}
}

func TestReadCSROfFewNames(t *testing.T) {
	key, err := issuer.Ed25519.Generate()
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []issuer.Request{
		{KeyType: issuer.Ed25519},
		{KeyType: issuer.Ed25519, CommonName: names.Must(names.ParseCommonName("ünïcode 'x'"))},
		{KeyType: issuer.Ed25519, DNSNames: request().DNSNames},
		{KeyType: issuer.Ed25519, CommonName: request().CommonName, EmailAddresses: request().EmailAddresses},
		{KeyType: issuer.Ed25519, URIs: request().URIs},
		{KeyType: issuer.Ed25519, IPAddresses: request().IPAddresses},
	} {
		made, err := issuer.NewCSR(req, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := issuer.ReadCSR(made.Raw, 0); err != nil || !reflect.DeepEqual(got, req) {
			t.Errorf("%+v: %v: %+v", req, err, got)
		}
	}
}

// ReadCSR rejects CSR contents that Request cannot represent, because the policy
// would not see them.
func TestReadCSRRefusesMore(t *testing.T) {
	extension := func(id asn1.ObjectIdentifier, value any) pkix.Extension {
		der, err := asn1.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return pkix.Extension{Id: id, Value: der}
	}
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	dns := func(name string) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(name)}
	}
	principal := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 3, 42, 3, 4, 0xa0, 3, 12, 1, 'x'}}
	for name, template := range map[string]*x509.CertificateRequest{
		"organization":     {Subject: pkix.Name{CommonName: "web", Organization: []string{"system:masters"}}},
		"two common names": {Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "web"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "root"}}}},
		"CA":               {ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{2, 5, 29, 19}, struct{ CA bool }{true})}},
		"key usage":        {ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{4}, BitLength: 6})}},
		"template data":    {ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{1, 2, 3, 4}, "x")}},
		"otherName":        {ExtraExtensions: []pkix.Extension{extension(san, []asn1.RawValue{dns("web.shop"), principal})}},
		"names twice":      {DNSNames: []string{"web.shop"}, ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{2, 5, 29, 7}, []asn1.RawValue{dns("db.shop")})}},
		"critical names":   {ExtraExtensions: []pkix.Extension{{Id: san, Critical: true, Value: extension(san, []asn1.RawValue{dns("web.shop")}).Value}}},
	} {
		key, err := issuer.ECDSAP256.Generate()
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, req, err := issuer.ReadCSR(der, time.Hour); err == nil {
			t.Errorf("%s: ReadCSR accepted it as %+v", name, req)
		}
	}
}

// encodedCSR is a CSR as its DER-encoded parts.
type encodedCSR struct {
	version int
	subject []byte
	// attributes are the elements of the attribute SET.
	attributes [][]byte
	// more follows the attributes.
	more []byte
}

var (
	oidCommonName = []byte{6, 3, 0x55, 4, 3}
	oidSAN        = []byte{6, 3, 0x55, 0x1d, 0x11}
	oidKeyUsage   = []byte{6, 3, 0x55, 0x1d, 0x0f}
	oidExtensions = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 9, 14}
	oidPassword   = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 9, 7}
)

// DER tags.
const (
	octets     = 4
	utf8String = 12
	printable  = 19
	t61String  = 20
	ia5String  = 22
	bmpString  = 30
	sequence   = 0x30
	set        = 0x31
	email      = 0x81
	dnsName    = 0x82
	uriName    = 0x86
	ipName     = 0x87
	registered = 0x88
)

// der encodes a value from its encoded parts.
func der(tag byte, parts ...[]byte) []byte {
	contents := bytes.Join(parts, nil)
	encoded, err := asn1.Marshal(asn1.RawValue{Class: int(tag >> 6), Tag: int(tag & 0x1f), IsCompound: tag&0x20 != 0, Bytes: contents})
	if err != nil {
		panic(err)
	}
	return encoded
}

func text(tag byte, s string) []byte { return der(tag, []byte(s)) }

func attribute(value ...[]byte) []byte {
	return der(sequence, append([][]byte{oidCommonName}, value...)...)
}

func extensionRequest(extensions ...[]byte) []byte {
	return der(sequence, oidExtensions, der(set, der(sequence, extensions...)))
}

func sans(names ...[]byte) []byte {
	return der(sequence, oidSAN, der(octets, der(sequence, names...)))
}

func (c encodedCSR) sign(t *testing.T) []byte {
	t.Helper()
	key, err := issuer.Ed25519.Generate()
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	version := []byte{2, 1, byte(c.version)}
	tbs := der(sequence, version, c.subject, public, der(0xa0, c.attributes...), c.more)
	signature, err := key.Sign(rand.Reader, tbs, crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	return der(sequence, tbs, der(sequence, []byte{6, 3, 0x2b, 0x65, 0x70}), der(3, []byte{0}, signature))
}

// normalCSR is the encoding of the current Go release.
func normalCSR() encodedCSR {
	return encodedCSR{
		subject: der(sequence, der(set, attribute(text(printable, "web.shop")))),
		attributes: [][]byte{extensionRequest(sans(
			text(dnsName, "web.shop"), text(dnsName, "web.shop.svc"), text(email, "web@shop.example"), der(ipName, []byte{10, 0, 0, 1}),
			text(uriName, "spiffe://cluster.local/ns/shop/sa/web"),
		))},
	}
}

// Another Go release may encode the same CSR differently.
func TestReadCSRInOtherEncodings(t *testing.T) {
	want := request()
	want.IPAddresses = want.IPAddresses[:1]
	want.KeyType = issuer.Ed25519
	for name, change := range map[string]func(*encodedCSR){
		"as here":         func(*encodedCSR) {},
		"a UTF-8 subject": func(c *encodedCSR) { c.subject = der(sequence, der(set, attribute(text(utf8String, "web.shop")))) },
		"another order of types": func(c *encodedCSR) {
			c.attributes = [][]byte{extensionRequest(sans(
				text(uriName, "spiffe://cluster.local/ns/shop/sa/web"), der(ipName, []byte{10, 0, 0, 1}), text(dnsName, "web.shop"),
				text(email, "web@shop.example"), text(dnsName, "web.shop.svc"),
			))}
		},
	} {
		c := normalCSR()
		change(&c)
		csr, got, err := issuer.ReadCSR(c.sign(t), want.Duration)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v: %+v, want %+v", name, err, got, want)
		}
		if err == nil && name == "as here" {
			again, err := issuer.NewCSR(got, issuer.PrivateKey{Signer: ed25519.NewKeyFromSeed(make([]byte, 32))})
			if err != nil || !bytes.Equal(again.RawSubject, csr.RawSubject) || !reflect.DeepEqual(again.Extensions, csr.Extensions) {
				t.Errorf("the current Go release encodes the CSR differently: %v", err)
			}
		}
	}
}

func TestReadCSRRefusesWhatCouldHideMore(t *testing.T) {
	subject := func(rdns ...[]byte) func(*encodedCSR) {
		return func(c *encodedCSR) { c.subject = der(sequence, rdns...) }
	}
	attributes := func(all ...[]byte) func(*encodedCSR) {
		return func(c *encodedCSR) { c.attributes = all }
	}
	web := text(dnsName, "web.shop")
	null := []byte{5, 0}
	for name, change := range map[string]func(*encodedCSR){
		"version 1":                       func(c *encodedCSR) { c.version = 1 },
		"data after the attributes":       func(c *encodedCSR) { c.more = null },
		"an attribute after them":         func(c *encodedCSR) { c.more = der(sequence, oidPassword, der(set, text(utf8String, "x"))) },
		"no attributes, but data":         func(c *encodedCSR) { c.attributes, c.more = nil, null },
		"a common name of BMP":            subject(der(set, attribute(der(bmpString, []byte{0, 'w'})))),
		"a common name of T61":            subject(der(set, attribute(text(t61String, "web.shop")))),
		"a common name of IA5":            subject(der(set, attribute(text(ia5String, "web.shop")))),
		"an empty common name":            subject(der(set, attribute(text(utf8String, "")))),
		"two in one RDN":                  subject(der(set, attribute(text(printable, "a")), attribute(text(printable, "web.shop")))),
		"two RDNs":                        subject(der(set, attribute(text(printable, "a"))), der(set, attribute(text(printable, "web.shop")))),
		"an empty RDN":                    subject(der(set)),
		"an empty RDN before":             subject(der(set), der(set, attribute(text(printable, "web.shop")))),
		"another attribute of the name":   subject(der(set, der(sequence, []byte{6, 3, 0x55, 4, 10}, text(printable, "system:masters")))),
		"data after the common name":      subject(der(set, attribute(text(printable, "web.shop"), null))),
		"a password":                      attributes(extensionRequest(sans(web)), der(sequence, oidPassword, der(set, text(utf8String, "x")))),
		"a password alone":                attributes(der(sequence, oidPassword, der(set, text(utf8String, "x")))),
		"a list of another type":          attributes(der(sequence, oidPassword, der(set, der(sequence, sans(web))))),
		"an attribute that is none":       attributes(extensionRequest(sans(web)), null),
		"two requests for extensions":     attributes(extensionRequest(sans(web)), extensionRequest(der(sequence, oidKeyUsage, der(octets, []byte{3, 2, 2, 4})))),
		"a longer request for extensions": attributes(extensionRequest(sans(web)), extensionRequest(der(sequence, oidKeyUsage, der(octets, make([]byte, 100))))),
		"two lists of extensions":         attributes(der(sequence, oidExtensions, der(set, der(sequence, sans(web)), der(sequence, der(sequence, oidKeyUsage, der(octets, []byte{3, 2, 2, 4})))))),
		"no list of extensions":           attributes(der(sequence, oidExtensions, der(set))),
		"an empty list of extensions":     attributes(extensionRequest()),
		"data after the lists":            attributes(der(sequence, oidExtensions, der(set, der(sequence, sans(web))), null)),
		"another extension":               attributes(extensionRequest(sans(web), der(sequence, oidKeyUsage, der(octets, []byte{3, 2, 2, 4})))),
		"critical names":                  attributes(extensionRequest(der(sequence, oidSAN, []byte{1, 1, 0xff}, der(octets, der(sequence, web))))),
		"not critical, but written so":    attributes(extensionRequest(der(sequence, oidSAN, []byte{1, 1, 0}, der(octets, der(sequence, web))))),
		"data after the extension":        attributes(extensionRequest(der(sequence, oidSAN, der(octets, der(sequence, web)), null))),
		"data after the names":            attributes(extensionRequest(der(sequence, oidSAN, der(octets, der(sequence, web), null)))),
		"an empty list of names":          attributes(extensionRequest(sans())),
		"a registered ID":                 attributes(extensionRequest(sans(web, der(registered, []byte{42, 3})))),
		"another name":                    attributes(extensionRequest(sans(web, der(0xa0, []byte{6, 3, 42, 3, 4}, der(0xa0, text(utf8String, "x")))))),
		"a directory name":                attributes(extensionRequest(sans(web, der(0xa4, der(sequence))))),
		"a DNS name in parts":             attributes(extensionRequest(sans(web, der(dnsName|0x20, text(ia5String, "db.shop"))))),
		"a name of a tag without context": attributes(extensionRequest(sans(web, text(ia5String, "db.shop")))),
		"a URI in another spelling":       attributes(extensionRequest(sans(text(uriName, "spiffe://cluster.local/ns/shop/sa/web#")))),
		"an IPv4 address as IPv6":         attributes(extensionRequest(sans(der(ipName, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1})))),
		"a DNS name in capitals":          attributes(extensionRequest(sans(text(dnsName, "WEB.shop")))),
		"an address as a DNS name":        attributes(extensionRequest(sans(text(dnsName, "10.1")))),
		"an empty DNS name":               attributes(extensionRequest(sans(text(dnsName, "")))),
		"a list that does not end":        attributes(extensionRequest(sans(web)), []byte{0x30, 5}),
	} {
		c := normalCSR()
		change(&c)
		if _, req, err := issuer.ReadCSR(c.sign(t), time.Hour); err == nil {
			t.Errorf("%s: ReadCSR accepted it as %+v", name, req)
		}
	}
}

func TestReadCSRRefusesKeysAndSignatures(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{weak, odd} {
		csr, err := issuer.NewCSR(request(), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := issuer.ReadCSR(csr.Raw, time.Hour); err == nil {
			t.Errorf("ReadCSR accepted a %T of an unsupported size", key)
		}
	}
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuer.NewCSR(request(), key)
	if err != nil {
		t.Fatal(err)
	}
	der := csr.Raw
	der[len(der)-1] ^= 1
	if _, _, err := issuer.ReadCSR(der, time.Hour); err == nil {
		t.Error("ReadCSR accepted a CSR whose signature is not by its key")
	}
	for _, der := range [][]byte{nil, {}, []byte("CSR"), append(csr.Raw, 0)} {
		if _, _, err := issuer.ReadCSR(der, time.Hour); err == nil {
			t.Errorf("ReadCSR accepted %x", der)
		}
	}
}
