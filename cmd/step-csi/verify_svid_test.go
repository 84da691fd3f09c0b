package main

import (
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
)

// svid and go-spiffe agree about every certificate.
func TestSVID(t *testing.T) {
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	key, err := keyutil.GenerateDefaultSigner()
	if err != nil {
		t.Fatal(err)
	}
	encodedKey, err := pemutil.Serialize(key, pemutil.WithPKCS8(true))
	if err != nil {
		t.Fatal(err)
	}
	uris := func(texts ...string) func(*x509.Certificate) {
		return func(leaf *x509.Certificate) {
			leaf.URIs = nil
			for _, text := range texts {
				uri, err := url.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				leaf.URIs = append(leaf.URIs, uri)
			}
		}
	}
	usage := func(usage x509.KeyUsage) func(*x509.Certificate) {
		return func(leaf *x509.Certificate) { leaf.KeyUsage = usage }
	}
	const sign = x509.KeyUsageDigitalSignature
	for name, test := range map[string]struct {
		change func(leaf *x509.Certificate)
		want   string // the ID, or a part of the error
	}{
		"by default":         {func(*x509.Certificate) {}, "spiffe://cluster.local/ns/shop/sa/web"},
		"of RSA":             {usage(sign | x509.KeyUsageKeyEncipherment), "spiffe://cluster.local/ns/shop/sa/web"},
		"another ID":         {uris("spiffe://a_b-c.9/A.b_c-9/..."), "spiffe://a_b-c.9/A.b_c-9/..."},
		"no URI":             {uris(), "no URI"},
		"two URIs":           {uris("spiffe://cluster.local/ns/shop/sa/web", "https://example.com/web"), "2 URIs"},
		"two IDs":            {uris("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/web"), "2 URIs"},
		"another scheme":     {uris("https://cluster.local/ns/shop/sa/web"), "its URI https://cluster.local/ns/shop/sa/web is not a SPIFFE ID"},
		"trust domain alone": {uris("spiffe://cluster.local"), "is not a SPIFFE ID"},
		"root path":          {uris("spiffe://cluster.local/"), "is not a SPIFFE ID"},
		"slash at the end":   {uris("spiffe://cluster.local/web/"), "is not a SPIFFE ID"},
		"empty segment":      {uris("spiffe://cluster.local//web"), "is not a SPIFFE ID"},
		"dot segment":        {uris("spiffe://cluster.local/./web"), "is not a SPIFFE ID"},
		"dots at the end":    {uris("spiffe://cluster.local/web/.."), "is not a SPIFFE ID"},
		"port":               {uris("spiffe://cluster.local:8443/web"), "is not a SPIFFE ID"},
		"user":               {uris("spiffe://web@cluster.local/web"), "is not a SPIFFE ID"},
		"upper case":         {uris("spiffe://Cluster.local/web"), "is not a SPIFFE ID"},
		"query":              {uris("spiffe://cluster.local/web?x=y"), "is not a SPIFFE ID"},
		"fragment":           {uris("spiffe://cluster.local/web#x"), "is not a SPIFFE ID"},
		"escape":             {uris("spiffe://cluster.local/w%20b"), "is not a SPIFFE ID"},
		"CA":                 {func(leaf *x509.Certificate) { leaf.BasicConstraintsValid, leaf.IsCA = true, true }, "CA"},
		"signs certificates": {usage(sign | x509.KeyUsageCertSign), "keyCertSign"},
		"signs revocations":  {usage(sign | x509.KeyUsageCRLSign), "cRLSign"},
		"encrypts alone":     {usage(x509.KeyUsageKeyEncipherment), "digitalSignature"},
		"no key usage":       {usage(0), "digitalSignature"},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := &x509.Certificate{PublicKey: key.Public(), KeyUsage: sign}
			uris("spiffe://cluster.local/ns/shop/sa/web")(leaf)
			test.change(leaf)
			signed, err := ca.Sign(leaf)
			if err != nil {
				t.Fatal(err)
			}
			id, err := svid(signed)
			if err == nil && id != test.want || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, %v; want %q", id, err, test.want)
			}
			theirs, theirErr := x509svid.Parse([]byte(encodeCertificate(signed)), pem.EncodeToMemory(encodedKey))
			if (err == nil) != (theirErr == nil) || err == nil && id != theirs.ID.String() {
				t.Errorf("svid: %q, %v; go-spiffe: %v", id, err, theirErr)
			}
		})
	}
}
