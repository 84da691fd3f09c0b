package attributes_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer/names"
)

// The layout of SPIFFE names the files that the pod has not named, and accepts only what
// makes an X.509-SVID in the form that the draft asks for.
func TestLayout(t *testing.T) {
	usual := attributes.Files{Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt"}
	spiffe := attributes.Files{
		Certificate: "svid.pem", PrivateKey: "svid_key.pem", CA: "svid_bundle.pem",
		SPIFFEBundle: "example.org.spiffe-trust-bundle.pem", Bundle: "credential-bundle.private-key.pem",
	}
	with := func(change func(f *attributes.Files)) attributes.Files {
		f := spiffe
		change(&f)
		return f
	}
	for _, c := range []struct {
		values string // separated by blanks
		files  attributes.Files
		wrong  string
	}{
		{"", usual, ""},
		{"layout=default", usual, ""},
		{"layout=default spiffe=false dns-names=a.shop.svc key-type=rsa-2048 key-encoding=pkcs1 chain=leaf", usual, ""},
		{"layout=spiffe", spiffe, ""},
		{"layout=spiffe spiffe=true key-encoding=pkcs8 chain=full", spiffe, ""},
		{"layout=spiffe service-names=web dns-names=www.example.com ip-sans=10.0.0.1 email-sans=a@example.com common-name=web", spiffe, ""},
		{"layout=spiffe key-type=rsa-4096 reuse-private-key=true", spiffe, ""},
		{"layout=spiffe uri-sans=" + spiffeID, spiffe, ""},
		{"layout=spiffe certificate-file=tls.crt", with(func(f *attributes.Files) { f.Certificate = "tls.crt" }), ""},
		{"layout=spiffe privatekey-file=tls.key", with(func(f *attributes.Files) { f.PrivateKey = "tls.key" }), ""},
		{"layout=spiffe ca-file=ca.crt", with(func(f *attributes.Files) { f.CA = "ca.crt" }), ""},
		{"layout=spiffe bundle-file=credential-bundle.pem", with(func(f *attributes.Files) { f.Bundle = "credential-bundle.pem" }), ""},
		{"layout=spiffe spiffe-bundle-file=x509.pem", with(func(f *attributes.Files) { f.SPIFFEBundle = "x509.pem" }), ""},
		{"layout=spiffe certificate-der-file=svid.der", with(func(f *attributes.Files) { f.CertificateDER = "svid.der" }), ""},
		{"layout=spiffe certificate-file=svid_key.pem privatekey-file=svid.pem", with(func(f *attributes.Files) { f.Certificate, f.PrivateKey = "svid_key.pem", "svid.pem" }), ""},
		{"spiffe-bundle-file=own.pem", attributes.Files{Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt", SPIFFEBundle: "own.pem"}, ""},

		{"layout=SPIFFE", spiffe, `layout: "SPIFFE" is not one of default, spiffe`},
		{"layout=spiffe spiffe=false dns-names=a.shop.svc", spiffe,
			`spiffe: layout: spiffe is for certificates with the pod's SPIFFE ID; leave out spiffe: "false", or leave out layout`},
		{"layout=spiffe spiffe=false uri-sans=" + spiffeID, spiffe, "spiffe: layout: spiffe is for certificates with the pod's SPIFFE ID"},
		{"layout=spiffe uri-sans=https://example.com/a", spiffe,
			"uri-sans: layout: spiffe is for X.509-SVIDs, which have the SPIFFE ID as their only URI; leave out https://example.com/a, or leave out layout"},
		{"layout=spiffe uri-sans=spiffe://example.org/b," + spiffeID, spiffe, "leave out spiffe://example.org/b, or leave out layout"},
		{"layout=spiffe key-type=rsa-2048 key-encoding=pkcs1", spiffe,
			"key-encoding: layout: spiffe is for keys in pkcs8; leave out key-encoding: pkcs1, or leave out layout"},
		{"layout=spiffe key-encoding=sec1", spiffe, "leave out key-encoding: sec1, or leave out layout"},
		{"layout=spiffe chain=leaf", spiffe, "chain: layout: spiffe is for the full chain; leave out chain: leaf, or leave out layout"},
		{"layout=spiffe chain=full-with-root", spiffe, "leave out chain: full-with-root, or leave out layout"},
		{"layout=spiffe certificate-file=svid_bundle.pem", spiffe, `certificate-file and ca-file are both "svid_bundle.pem"; give them different names`},
		{"layout=spiffe ca-file=example.org.spiffe-trust-bundle.pem", spiffe, "ca-file and spiffe-bundle-file are both"},
		{"layout=spiffe privatekey-file=credential-bundle.private-key.pem", spiffe, "privatekey-file and bundle-file are both"},
	} {
		values := map[string]string{}
		for _, pair := range strings.Fields(c.values) {
			key, value, _ := strings.Cut(pair, "=")
			values[key] = value
		}
		got, err := attributes.Parse(values, pod, "", config())
		switch {
		case c.wrong != "":
			wantError(t, c.values, err, c.wrong)
		case err != nil || got.Files != c.files:
			t.Errorf("%s: %+v, %v", c.values, got.Files, err)
		case strings.Contains(c.values, "layout=spiffe") && (len(got.Request.URIs) != 1 || got.Request.URIs[0].String() != spiffeID):
			t.Errorf("%s: the URIs are %s", c.values, got.Request.URIs)
		}
		checkNormalize(t, maps.Clone(values), func(values map[string]string) (attributes.Attributes, error) {
			return attributes.Parse(values, pod, "", config())
		})
	}
}

// The trust domain is a part of a file's name, which can be too long.
func TestLayoutOfALongTrustDomain(t *testing.T) {
	c := config()
	c.TrustDomain = names.Must(names.ParseTrustDomain(strings.Repeat("a", 240)))
	_, err := attributes.Parse(map[string]string{"layout": "spiffe"}, pod, "", c)
	wantError(t, "a long trust domain", err, "a file name has at most 255; set spiffe-bundle-file")
	if _, err := attributes.Parse(map[string]string{"layout": "spiffe", "spiffe-bundle-file": "bundle.pem"}, pod, "", c); err != nil {
		t.Error(err)
	}
}
