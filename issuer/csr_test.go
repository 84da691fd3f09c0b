package issuer_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

func TestReadCSRIsNewCSRBackwards(t *testing.T) {
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
		{KeyType: issuer.Ed25519, CommonName: "ünïcode 'x'"},
		{KeyType: issuer.Ed25519, DNSNames: []string{"web.shop"}},
		{KeyType: issuer.Ed25519, CommonName: "web", EmailAddresses: []string{"web@shop.example"}},
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

// What a policy that sees the Request would not see does not get in.
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
		"organization":         {Subject: pkix.Name{CommonName: "web", Organization: []string{"system:masters"}}},
		"two common names":     {Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "web"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "root"}}}},
		"CA":                   {ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{2, 5, 29, 19}, struct{ CA bool }{true})}},
		"key usage":            {ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{2, 5, 29, 15}, asn1.BitString{Bytes: []byte{4}, BitLength: 6})}},
		"template data":        {ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{1, 2, 3, 4}, "x")}},
		"otherName":            {ExtraExtensions: []pkix.Extension{extension(san, []asn1.RawValue{dns("web.shop"), principal})}},
		"names twice":          {DNSNames: []string{"web.shop"}, ExtraExtensions: []pkix.Extension{extension(asn1.ObjectIdentifier{2, 5, 29, 7}, []asn1.RawValue{dns("db.shop")})}},
		"names in other order": {ExtraExtensions: []pkix.Extension{extension(san, []asn1.RawValue{{Class: 2, Tag: 7, Bytes: net.IPv4(10, 0, 0, 1).To4()}, dns("web.shop")})}},
		"critical names":       {ExtraExtensions: []pkix.Extension{{Id: san, Critical: true, Value: extension(san, []asn1.RawValue{dns("web.shop")}).Value}}},
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
			t.Errorf("%s: accepted as %+v", name, req)
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
			t.Errorf("a %T of an unknown size is accepted", key)
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
		t.Error("a CSR that its key has not signed is accepted")
	}
	for _, der := range [][]byte{nil, {}, []byte("CSR"), append(csr.Raw, 0)} {
		if _, _, err := issuer.ReadCSR(der, time.Hour); err == nil {
			t.Errorf("%x is accepted", der)
		}
	}
}
