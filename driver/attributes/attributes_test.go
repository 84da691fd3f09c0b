package attributes_test

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/keystore"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
)

var pod = issuer.Pod{Namespace: "shop", Name: "web-0", UID: "0b5e3d2c-58a1-4a34-8a8c-0f7a3c6f1c55", ServiceAccount: "front", Node: "node-1"}

func commonName(text string) names.CommonName { return names.Must(names.ParseCommonName(text)) }

func config() attributes.Config {
	return attributes.Config{
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")),
		TrustDomain:   names.Must(names.ParseTrustDomain("example.org")),
		Issuers: map[string]issuer.Lifetimes{
			"default": {Default: 24 * time.Hour, Min: 5 * time.Minute, Max: 48 * time.Hour},
			"short":   {Default: time.Minute, Min: time.Second, Max: time.Hour},
		},
	}
}

const spiffeID = "spiffe://example.org/ns/shop/sa/front"

// namesOf returns the names of a request, except the SPIFFE ID and the common name.
func namesOf(r issuer.Request) []string {
	return slices.DeleteFunc(r.AlternativeNames(), func(name string) bool { return name == spiffeID })
}

// nameCases are values of one name attribute, each with the resulting names or a
// part of the error. Names are separated by spaces.
var nameCases = []struct{ key, value, want, wrong string }{
	{"dns-names", "a.example.com", "a.example.com", ""},
	{"dns-names", " a.example.com ,\tb.example.com\n", "a.example.com b.example.com", ""},
	{"dns-names", "b.example.com,a.example.com,B.Example.com", "b.example.com a.example.com", ""},
	{"dns-names", "*.example.com", "*.example.com", ""},
	{"dns-names", "web", "web", ""},
	{"dns-names", "my--app.shop", "my--app.shop", ""},
	{"dns-names", "1.example.com", "1.example.com", ""},
	{"dns-names", "Bücher.example", "xn--bcher-kva.example", ""},
	{"dns-names", "XN--BCHER-KVA.example,bücher.example", "xn--bcher-kva.example", ""},
	{"dns-names", "faß.example", "xn--fa-hia.example", ""},
	{"dns-names", "ａ。example", "a.example", ""},
	{"dns-names", strings.Repeat("a", 63) + ".example", strings.Repeat("a", 63) + ".example", ""},
	{"dns-names", "${POD_NAME}.web.${POD_NAMESPACE}.svc", "web-0.web.shop.svc", ""},
	{"dns-names", "${SERVICE_ACCOUNT_NAME}.${NODE_NAME}.${CLUSTER_DOMAIN}", "front.node-1.cluster.local", ""},
	{"dns-names", "u${POD_UID}.${TRUST_DOMAIN}", "u0b5e3d2c-58a1-4a34-8a8c-0f7a3c6f1c55.example.org", ""},
	{"dns-names", "", "", `dns-names: the value is empty; set one, or leave out the key`},
	{"dns-names", " ", "", `dns-names: " " has an empty part`},
	{"dns-names", "a,,b", "", `dns-names: "a,,b" has an empty part; leave out the comma`},
	{"dns-names", "a,", "", "empty part"},
	{"dns-names", "a.example.com.", "", `"a.example.com.": leave out the dot at the end`},
	{"dns-names", "a.example.com。", "", "is not a DNS name"},
	{"dns-names", ".example.com", "", "is not a DNS name"},
	{"dns-names", "a..b", "", "is not a DNS name"},
	{"dns-names", "a b", "", "is not a DNS name"},
	{"dns-names", "a_b.example.com", "", "is not a DNS name"},
	{"dns-names", "-a.example.com", "", "is not a DNS name"},
	{"dns-names", "a-.example.com", "", "is not a DNS name"},
	{"dns-names", "xn--a.example", "", "is not a DNS name"},
	{"dns-names", "xn--webprod-8o3f.svc", "", "is not a DNS name"}, // web。prod.svc
	{"dns-names", "a\x00b", "", `"a\x00b" is not a DNS name`},
	{"dns-names", "a\xff", "", `"a\xff" is not a DNS name`},
	{"dns-names", strings.Repeat("a", 64) + ".example", "", "is not a DNS name"},
	{"dns-names", strings.Repeat("a.", 127) + "a", "", "is not a DNS name"},
	{"dns-names", "*." + strings.Repeat("a.", 125) + "aa", "", "longer than 253 bytes"},
	{"dns-names", "spiffe://example.org/x", "", "is not a DNS name"},
	{"dns-names", "a.example.com:443", "", "is not a DNS name"},
	{"dns-names", "10.0.0.1", "", `"10.0.0.1" is an IP address, not a DNS name; put it into ip-sans`},
	{"dns-names", "::1", "", "put it into ip-sans"},
	{"dns-names", "１.２.３.４", "", "ends in a number"},
	{"dns-names", "10.1", "", `"10.1" ends in a number`},
	{"dns-names", "123", "", "ends in a number"},
	{"dns-names", "a.0x1F", "", "ends in a number"},
	{"dns-names", "*", "", "a * must be the whole first label"},
	{"dns-names", "*.", "", "leave out the dot"},
	{"dns-names", "*.com", "", "at least two labels"},
	{"dns-names", "*.*.com", "", "a * must be"},
	{"dns-names", "a.*.com", "", "a * must be"},
	{"dns-names", "a*.example.com", "", "a * must be"},
	{"dns-names", "${POD_IP}", "", `dns-names: "${POD_IP}": a $ must begin one of ${POD_NAME}, ${POD_NAMESPACE}, ${POD_UID}, ${SERVICE_ACCOUNT_NAME}, ${NODE_NAME}, ${CLUSTER_DOMAIN}, ${TRUST_DOMAIN}`},
	{"dns-names", "${POD_NAME", "", "a $ must begin one of"},
	{"dns-names", "$POD_NAME}", "", "a $ must begin one of"},
	{"dns-names", "a$", "", "a $ must begin one of"},
	{"dns-names", "$$", "", "a $ must begin one of"},
	{"dns-names", "${pod_name}", "", "a $ must begin one of"},
	{"dns-names", "${${POD_NAME}}", "", "a $ must begin one of"},

	{"service-names", "web", "web.shop web.shop.svc web.shop.svc.cluster.local", ""},
	{"service-names", "Web,web", "web.shop web.shop.svc web.shop.svc.cluster.local", ""},
	{"service-names", "${POD_NAME}", "web-0.shop web-0.shop.svc web-0.shop.svc.cluster.local", ""},
	{"service-names", "web.shop", "", `"web.shop" is not the name of a Service`},
	{"service-names", "web。shop", "", "is not the name of a Service"},
	{"service-names", "*.a.b", "", "whole names belong in dns-names"},
	{"service-names", "*", "", "a * must be"},
	{"service-names", "web_1", "", "service-names:"},
	{"service-names", "10.0.0.1", "", "service-names:"},

	{"ip-sans", "10.0.0.1, 2001:DB8::0:1", "10.0.0.1 2001:db8::1", ""},
	{"ip-sans", "::1,0:0::1", "::1", ""},
	{"ip-sans", "10.0.0.256", "", `ip-sans: "10.0.0.256" is not an IP address`},
	{"ip-sans", "10.0.0.01", "", "is not an IP address"},
	{"ip-sans", "fe80::1%eth0", "", "is not an IP address"},
	{"ip-sans", "example.com", "", "is not an IP address"},
	{"ip-sans", "::ffff:10.0.0.1", "", "write it as 10.0.0.1"},
	{"ip-sans", "0.0.0.0", "", "is not the address of one host"},
	{"ip-sans", "::", "", "is not the address of one host"},
	{"ip-sans", "224.0.0.1", "", "is not the address of one host"},
	{"ip-sans", "ff02::1", "", "is not the address of one host"},

	{"uri-sans", "https://example.com/a?b=c&d#e", "https://example.com/a?b=c&d#e", ""},
	{"uri-sans", "spiffe://trust_domain/a,https://[::1]:80/", "spiffe://trust_domain/a https://[::1]:80/", ""},
	{"uri-sans", spiffeID, "", ""},
	{"uri-sans", "spiffe://${TRUST_DOMAIN}/pod/${POD_NAME}", "spiffe://example.org/pod/web-0", ""},
	{"uri-sans", "example.com/a", "", `uri-sans: "example.com/a" is not a URI with scheme and host`},
	{"uri-sans", "urn:a:b", "", "scheme and host"},
	{"uri-sans", "https:///a", "", "scheme and host"},
	{"uri-sans", "//example.com", "", "scheme and host"},
	{"uri-sans", "https://:80", "", "scheme and host"},
	{"uri-sans", "https://a b/", "", "scheme and host"},
	{"uri-sans", "https://[fe80::1%25eth0]/", "", "percent-encoding"},
	{"uri-sans", "https://user:pw@example.com", "", "leave out the user"},
	{"uri-sans", "https://example.com/ä", "", "printable ASCII"},
	{"uri-sans", "https://example.com/%61", "", "percent-encoding"},
	{"uri-sans", "https://example.com/a b", "", "printable ASCII"},
	{"uri-sans", "https://example.com/a/../b", "", `dot segment; write it as "https://example.com/b"`},
	{"uri-sans", "https://example.com//a", "", "empty segment"},
	{"uri-sans", "https://example.com/a/", "", "empty segment"},
	{"uri-sans", "HTTPS://Example.com", "", `write it as "https://example.com"`},
	{"uri-sans", "https://example.com#", "", `write it as "https://example.com"`},
	{"uri-sans", "https://example.com/{a}", "", "needs no percent-encoding"},
	{"uri-sans", "https://example.com/#a#b", "", "needs no percent-encoding"},
	{"uri-sans", "https://example.com:/a", "", `write it as "https://example.com/a"`},
	{"uri-sans", "https://example.com:0443", "", `write it as "https://example.com:443"`},
	{"uri-sans", "https://[2001:DB8::01]:443/", "", `write it as "https://[2001:db8::1]:443/"`},
	{"uri-sans", "https://[::ffff:10.0.0.1]/", "", `write it as "https://10.0.0.1/"`},
	{"uri-sans", "https://10.0.0.1/,https://[::1]", "https://10.0.0.1/ https://[::1]", ""},
	{"uri-sans", "spiffe://prod.1/a", "spiffe://prod.1/a", ""},
	{"uri-sans", "https://10.0.0.01/", "", "the host must be"},
	{"uri-sans", "https://10.1/", "", "the host must be"},
	{"uri-sans", "https://example.com./", "", "the host must be"},
	{"uri-sans", "https://a..b/", "", "the host must be"},
	{"uri-sans", "https://example.com/" + strings.Repeat("a", 2048), "", "longer than 2048 bytes"},

	{"email-sans", "admin@example.com,a.b+c@example.com", "admin@example.com a.b+c@example.com", ""},
	{"email-sans", "${SERVICE_ACCOUNT_NAME}@${POD_NAMESPACE}.example", "front@shop.example", ""},
	{"email-sans", "Admin@example.com", "", `email-sans: "Admin@example.com" is not an e-mail address in lower-case ASCII`},
	{"email-sans", "admin", "", "is not an e-mail address"},
	{"email-sans", "<admin@example.com>", "", "is not an e-mail address"},
	{"email-sans", "Admin <admin@example.com>", "", "is not an e-mail address"},
	{"email-sans", `"admin"@example.com`, "", "is not an e-mail address"},
	{"email-sans", "a@b@example.com", "", "is not an e-mail address"},
	{"email-sans", "ä@example.com", "", "is not an e-mail address"},
	{"email-sans", "admin@[10.0.0.1]", "", "must be a DNS name"},
	{"email-sans", "admin@10.0.0.1", "", "must be a DNS name"},
	{"email-sans", "admin@ex_ample.com", "", "must be a DNS name"},
}

func TestNames(t *testing.T) {
	key, err := issuer.Ed25519.Generate()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range nameCases {
		got, err := attributes.Parse(map[string]string{c.key: c.value}, pod, "", config())
		if c.wrong != "" {
			wantError(t, c.key+"="+c.value, err, c.wrong)
			continue
		}
		if err != nil || strings.Join(namesOf(got.Request), " ") != c.want {
			t.Errorf("%s=%.90q: %q, %v, want %q", c.key, c.value, namesOf(got.Request), err, c.want)
		}
		checkCSR(t, got.Request, key)
	}
}

func wantError(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%.90q: got %v, want an error with %q", what, err, want)
		return
	}
	if text := err.Error(); len(text) > 2000 || strings.Contains(text, "\n") || !utf8.ValidString(text) {
		t.Errorf("%.90q: the error does not fit into an event: %.200q", what, text)
	}
}

// fullRequest sets every attribute to a value that is not the default.
func fullRequest() map[string]string {
	return map[string]string{
		"organizations":        "Acme, ${POD_NAMESPACE}",
		"organizational-units": "Web",
		"countries":            "DE",
		"provinces":            "Bayern",
		"localities":           "München",
		"street-addresses":     "Ring 1",
		"postal-codes":         "80331",
		"template-data":        `{"team": "shop"}`,

		"issuer":            "short",
		"service-names":     "web",
		"dns-names":         "www.example.com",
		"ip-sans":           "10.0.0.1",
		"uri-sans":          "https://example.com/a",
		"email-sans":        "admin@example.com",
		"spiffe":            "false",
		"common-name":       "${POD_NAME}.example",
		"duration":          "30m",
		"renew-before":      "90s",
		"key-type":          "rsa-2048",
		"key-encoding":      "pkcs1",
		"reuse-private-key": "true",
		"certificate-file":  "cert.pem",
		"privatekey-file":   "key.pem",
		"ca-file":           "roots.pem",
		"fs-group":          "3000",
		"file-mode":         "0400",
		"revoke-on-delete":  "true",

		"chain":                "full-with-root",
		"owner-uid":            "1000",
		"privatekey-mode":      "0600",
		"bundle-file":          "bundle.pem",
		"spiffe-bundle-file":   "own.pem",
		"layout":               "default",
		"certificate-der-file": "cert.der",
		"privatekey-der-file":  "key.der",
		"ca-directory":         "roots",
		"trust-only":           "false",

		"pkcs12-file":            "keystore.p12",
		"pkcs12-truststore-file": "truststore.p12",
		"pkcs12-profile":         "legacy",
		"jks-file":               "keystore.jks",
		"jks-truststore-file":    "truststore.jks",
		"keystore-alias":         "web server",
		"keystore-password-file": "password",
	}
}

func TestAllAttributes(t *testing.T) {
	full := fullRequest()
	if keys := slices.Sorted(slices.Values(attributes.Keys())); !slices.Equal(keys, slices.Sorted(maps.Keys(full))) {
		t.Fatalf("the keys are %q", keys)
	}
	got, err := attributes.Parse(full, pod, "2000", config())
	if err != nil {
		t.Fatal(err)
	}
	if want := "www.example.com web.shop web.shop.svc web.shop.svc.cluster.local 10.0.0.1 https://example.com/a admin@example.com"; strings.Join(namesOf(got.Request), " ") != want {
		t.Errorf("names %q", namesOf(got.Request))
	}
	group := 3000
	want := attributes.Attributes{
		Issuer: "short", RenewBefore: 90 * time.Second,
		KeyEncoding: attributes.PKCS1, ReusePrivateKey: true,
		Files: attributes.Files{
			Certificate: "cert.pem", PrivateKey: "key.pem", CA: "roots.pem",
			SPIFFEBundle: "own.pem", Bundle: "bundle.pem", CertificateDER: "cert.der", PrivateKeyDER: "key.der", CADirectory: "roots",
			PKCS12: "keystore.p12", PKCS12TrustStore: "truststore.p12", JKS: "keystore.jks", JKSTrustStore: "truststore.jks",
			KeyStorePassword: "password",
		},
		PKCS12Profile: keystore.Legacy, KeyStoreAlias: "web server",
		Chain: attributes.WithRoot,
		Owner: 1000, Group: &group, Mode: 0o400, PrivateKeyMode: 0o600, RevokeOnDelete: true,
		Request: issuer.Request{CommonName: commonName("web-0.example"), Duration: 30 * time.Minute, KeyType: issuer.RSA2048},
	}
	want.Request.Subject = fullSubject()
	want.Request.TemplateData = templateData(`{"team":"shop"}`)
	if got := withoutNames(got); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDefaults(t *testing.T) {
	got, err := attributes.Parse(nil, pod, "", config())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Request.URIs) != 1 || got.Request.URIs[0].String() != spiffeID || len(namesOf(got.Request)) != 0 {
		t.Errorf("names %+v", got.Request)
	}
	want := attributes.Attributes{
		Issuer: "default", KeyEncoding: attributes.PKCS8,
		Files: attributes.Files{Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt"},
		Chain: attributes.FullChain, PrivateKeyMode: 0o444,
		Mode:    0o444,
		Request: issuer.Request{CommonName: commonName(pod.UID), Duration: 24 * time.Hour, KeyType: issuer.ECDSAP256},
	}
	if got := withoutNames(got); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func withoutNames(a attributes.Attributes) attributes.Attributes {
	r := &a.Request
	r.DNSNames, r.IPAddresses, r.URIs, r.EmailAddresses = nil, nil, nil, nil
	return a
}

// otherCases are changes to the full request, each with a part of the error.
var otherCases = []struct{ key, value, wrong string }{
	{"issuer", "other", `issuer: "other" is not an issuer in the plugin's configuration; it has default, short`},
	{"issuer", "", "issuer: the value is empty"},
	{"spiffe", "yes", `spiffe: "yes" is not one of true, false`},
	{"spiffe", "True", "not one of true, false"},
	{"spiffe", "true", ""},
	{"common-name", strings.Repeat("a", 64), ""},
	{"common-name", "Web Server", ""},
	{"common-name", strings.Repeat("a", 65), "1 to 64 bytes (RFC 5280)"},
	{"common-name", "a\nb", `common-name: "a\nb" contains characters that are not printable`},
	{"common-name", "a\u202eb", "not printable"},
	{"common-name", "a\xffb", "not printable"},
	{"common-name", " a", "leave out the blanks at the ends"},
	{"common-name", "${X}", "a $ must begin one of ${POD_NAME}"},
	{"duration", "1h", ""},
	{"duration", "2m", ""},
	{"duration", "61m", `duration: "1h1m0s" is not between 1s and 1h0m0s, which the plugin's configuration allows for the issuer "short"`},
	{"duration", "500ms", "is not between"},
	{"duration", "0s", "is not a duration above zero"},
	{"duration", "-1h", "is not a duration above zero"},
	{"duration", "1d", `duration: "1d" is not a duration above zero, such as 24h or 90m`},
	{"duration", "90s", `renew-before: "1m30s" is not shorter than the duration of 1m30s`},
	{"renew-before", "30m", "is not shorter"},
	{"renew-before", "29m59s", ""},
	{"renew-before", "0", "is not a duration above zero"},
	{"key-type", "rsa-4096", ""},
	{"key-type", "rsa", `key-type: "rsa" is not one of ecdsa-p256`},
	{"key-type", "RSA-2048", "is not one of"},
	{"key-type", "ecdsa-p256", "key-encoding: pkcs1 is for RSA keys, and key-type is ecdsa-p256; use pkcs8"},
	{"key-type", "ed25519", "key-encoding: pkcs1 is for RSA keys, and key-type is ed25519"},
	{"key-encoding", "pkcs8", ""},
	{"key-encoding", "sec1", "key-encoding: sec1 is for ECDSA keys, and key-type is rsa-2048"},
	{"key-encoding", "der", `key-encoding: "der" is not one of pkcs8, pkcs1, sec1`},
	{"reuse-private-key", "1", "reuse-private-key:"},
	{"revoke-on-delete", "TRUE", "revoke-on-delete:"},
	{"certificate-file", "..a", "certificate-file: \"..a\" begins with two dots"},
	{"certificate-file", "..", "two dots"},
	{"certificate-file", "...", "two dots"},
	{"certificate-file", ".", "plain file name"},
	{"certificate-file", ".a", ""},
	{"certificate-file", "a..b", ""},
	{"certificate-file", "a/b", "plain file name"},
	{"certificate-file", "/a", "plain file name"},
	{"certificate-file", "a\x00", "not printable"},
	{"certificate-file", "a\n", "not printable"},
	{"certificate-file", "a\xff", "not printable"},
	{"certificate-file", strings.Repeat("a", 255), ""},
	{"certificate-file", strings.Repeat("a", 256), "at most 255"},
	{"certificate-file", "key.pem", `certificate-file and privatekey-file are both "key.pem"`},
	{"certificate-file", "roots.pem", "certificate-file and ca-file are both"},
	{"privatekey-file", "roots.pem", "privatekey-file and ca-file are both"},
	{"privatekey-file", "a/b", "privatekey-file:"},
	{"ca-file", "..", "ca-file:"},
	{"fs-group", "0", ""},
	{"fs-group", "2147483647", ""},
	{"fs-group", "2147483648", `fs-group: "2147483648" is not a group ID from 0 to 2147483647`},
	{"fs-group", "-1", "is not a group ID"},
	{"fs-group", "+1", "is not a group ID"},
	{"fs-group", "007", "is not a group ID"},
	{"fs-group", "www-data", "is not a group ID"},
	{"file-mode", "440", ""},
	{"file-mode", "0444", ""},
	{"file-mode", "0404", ""},
	{"file-mode", "0640", ""},
	{"file-mode", "0460", `file-mode: "0460" is not a mode of files in this volume: write it in octal; the owner must be able to read, only the owner may write, and no user may execute, such as 0440`},
	{"file-mode", "0555", "file-mode:"},
	{"file-mode", "0044", "file-mode:"},
	{"file-mode", "4440", "file-mode:"},
	{"file-mode", "0o440", "file-mode:"},
	{"file-mode", "0449", "file-mode:"},
	{"file-mode", "u=r", "file-mode:"},
	{"file-mode", "0", "file-mode:"},
	{"privatekey-mode", "0600", ""},
	{"privatekey-mode", "0700", `privatekey-mode: "0700" is not a mode of files in this volume`},
	{"privatekey-mode", "0602", "privatekey-mode:"},
	{"owner-uid", "0", ""},
	{"owner-uid", "2147483647", ""},
	{"owner-uid", "2147483648", `owner-uid: "2147483648" is not a user ID from 0 to 2147483647`},
	{"owner-uid", "-1", "owner-uid:"},
	{"owner-uid", "postgres", `owner-uid: "postgres" is not a user ID`},
	{"owner-uid", "007", "owner-uid:"},
	{"chain", "leaf", ""},
	{"chain", "full", ""},
	{"chain", "root", `chain: "root" is not one of leaf, full, full-with-root`},
	{"bundle-file", "../a", "bundle-file:"},
	{"pkcs12-file", "keystore.p12", ""},
	{"pkcs12-file", "true", `pkcs12-file: "true" is not a file name: write a name, or leave out the attribute`},
	{"bundle-file", "false", `bundle-file: "false" is not a file name`},
	{"ca-directory", "true", "is not a file name"},
	{"pkcs12-file", "password", `pkcs12-file and keystore-password-file are both "password"; give them different names`},
	{"jks-truststore-file", "cert.pem", `certificate-file and jks-truststore-file are both "cert.pem"`},
	{"pkcs12-profile", "weak", `pkcs12-profile: "weak" is not one of modern, legacy`},
	{"keystore-alias", " web", `keystore-alias: " web" is not an alias: use 1 to 64 printable ASCII characters, without a blank at either end`},
	{"keystore-password-file", "a/b", `keystore-password-file: "a/b" is not a plain file name`},
	{"bundle-file", "key.pem", `privatekey-file and bundle-file are both "key.pem"; give them different names`},
	{"certificate-der-file", "roots.pem", `ca-file and certificate-der-file are both "roots.pem"; give them different names`},
	{"ca-directory", "certs", ""},
	{"ca-directory", "roots.pem", `ca-file and ca-directory are both "roots.pem"; give them different names`},
	{"ca-directory", "a/b", `ca-directory: "a/b" is not a plain file name`},
	{"ca-directory", "..data", `ca-directory: "..data" begins with two dots`},
	{"trust-only", "yes", "trust-only:"},
	{"trust-only", "true", "trust-only: a volume with trust only has no certificate and no private key, so that bundle-file, certificate-der-file,"},
	{"privatekey-der-file", "..key", `privatekey-der-file: "..key" begins with two dots`},
}

func TestOtherAttributes(t *testing.T) {
	for _, c := range otherCases {
		values := fullRequest()
		values[c.key] = c.value
		_, err := attributes.Parse(values, pod, "", config())
		if c.wrong != "" {
			wantError(t, c.key+"="+c.value, err, c.wrong)
		} else if err != nil {
			t.Errorf("%s=%q: %v", c.key, c.value, err)
		}
	}
}

func TestUnknownKeys(t *testing.T) {
	for key, want := range map[string]string{
		"dnsnames":                            `"dnsnames" is not a volume attribute; dns-names is`,
		"DNS-Names":                           "dns-names is",
		"service-name":                        "service-names is",
		"uri-san":                             "uri-sans is",
		"keytype":                             "key-type is",
		"cert-file":                           "; certificate-file is",
		"key-file":                            "; privatekey-file is",
		"der-file":                            "; certificate-der-file, privatekey-der-file are",
		"truststore-file":                     "; pkcs12-truststore-file, jks-truststore-file are",
		"Mode":                                "; file-mode, privatekey-mode are",
		"keystore-file":                       "; pkcs12-file, jks-file are",
		"dns":                                 "; dns-names is",
		"read-only":                           `"read-only" is not a volume attribute; these are: issuer, `,
		"ttl":                                 "these are: " + strings.Join(attributes.Keys(), ", "),
		"":                                    "these are: issuer, ",
		"a\nb\xff":                            `"a\nb\xff"`,
		"csi.cert-manager.io/dns-names":       `"csi.cert-manager.io/dns-names": write dns-names, without the part before the slash`,
		"csi.cert-manager.io/issuer-name":     "write issuer",
		"csi.cert-manager.io/key-size":        "write key-type",
		"csi.cert-manager.io/pkcs12-enable":   "write pkcs12-file, with a file name such as keystore.p12",
		"csi.cert-manager.io/pkcs12-password": "this driver has no such attribute; leave it out",
		"csi.storage.k8s.io/pod.name":         "is not a volume attribute",
	} {
		_, err := attributes.Parse(map[string]string{key: "s3cret"}, pod, "", config())
		wantError(t, key, err, want)
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error contains the value: %v", err)
		}
	}
}

func TestErrorsHaveOneOrder(t *testing.T) {
	values := map[string]string{"zz": "1", "aa": "1", "ip-sans": "x", "dns-names": "a_b", "spiffe": ""}
	_, first := attributes.Parse(values, pod, "", config())
	lines := strings.Split(first.Error(), "; and ")
	var keys []string
	for _, line := range lines {
		keys = append(keys, strings.Trim(strings.FieldsFunc(line, func(r rune) bool { return r == ':' || r == ' ' })[0], `"`))
	}
	if want := []string{"aa", "zz", "dns-names", "ip-sans", "spiffe"}; !slices.Equal(keys, want) {
		t.Errorf("%q", keys)
	}
	for range 20 {
		if _, err := attributes.Parse(values, pod, "", config()); err.Error() != first.Error() {
			t.Fatalf("the order of the errors differs: %v\nafter\n%v", err, first)
		}
	}
}

func TestManyErrorsFitIntoAnEvent(t *testing.T) {
	values := map[string]string{}
	for i := range 600 {
		values["k"+string(rune('a'+i%26))+string(rune('a'+i/26))] = "v"
	}
	_, err := attributes.Parse(values, pod, "", config())
	wantError(t, "many", err, "; and 595 more")
}

func TestLimits(t *testing.T) {
	list := func(n int, f func(i string) string) string {
		var all []string
		for i := range n {
			all = append(all, f(strings.Repeat("a", i%60+1)+strings.Repeat("b", i/60)))
		}
		return strings.Join(all, ",")
	}
	plain := func(s string) string { return s }
	for what, c := range map[string]struct {
		values map[string]string
		wrong  string
	}{
		"99 names and the SPIFFE ID":  {map[string]string{"dns-names": list(99, plain)}, ""},
		"100 names and the SPIFFE ID": {map[string]string{"dns-names": list(100, plain)}, "101 names are too many for one certificate; the limit is 100"},
		"100 names":                   {map[string]string{"dns-names": list(100, plain), "spiffe": "false"}, ""},
		"101 names in one attribute":  {map[string]string{"dns-names": list(101, plain)}, "has 101 names; the limit is 100"},
		"34 services":                 {map[string]string{"service-names": list(34, plain)}, "103 names are too many"},
		"a long attribute":            {map[string]string{"common-name": strings.Repeat("a", 9000)}, "the limit is 8192"},
		"a long key":                  {map[string]string{strings.Repeat("a", 9000): "a"}, "the limit is 8192"},
		"long as JSON":                {map[string]string{"uri-sans": "https://a/?" + strings.Repeat("&", 1400)}, "the limit is 8192"},
		"long by variables": {map[string]string{"uri-sans": list(90, func(i string) string {
			return "https://" + i + "/" + strings.Repeat("${POD_UID}", 3)
		})}, "names of"},
		"no name": {map[string]string{"spiffe": "false"}, "add service-names or dns-names, or leave out spiffe"},
	} {
		_, err := attributes.Parse(c.values, pod, "", config())
		if c.wrong != "" {
			wantError(t, what, err, c.wrong)
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSPIFFEIDIsTheFirstURI(t *testing.T) {
	for _, uris := range []string{"https://example.com/a", "https://example.com/a," + spiffeID, spiffeID + ",https://example.com/a"} {
		got, err := attributes.Parse(map[string]string{"uri-sans": uris}, pod, "", config())
		if err != nil || len(got.Request.URIs) != 2 || got.Request.URIs[0].String() != spiffeID {
			t.Errorf("%s: %v, %v", uris, got.Request.URIs, err)
		}
	}
	p := pod
	p.ServiceAccount = strings.Repeat("a", 2040)
	_, err := attributes.Parse(nil, p, "", config())
	wantError(t, "a long account", err, `spiffe: "spiffe://example.org/ns/shop/sa/a`)
}

func TestShortNames(t *testing.T) {
	c := config()
	c.AllowShortNames = true
	got, err := attributes.Parse(map[string]string{"service-names": "b,a", "dns-names": "z.example.com,b.shop.svc"}, pod, "", c)
	want := []string{
		"z.example.com", "b.shop.svc",
		"b.shop", "b.shop.svc.cluster.local", "b",
		"a.shop", "a.shop.svc", "a.shop.svc.cluster.local", "a",
	}
	if err != nil || !slices.Equal(names.Texts(got.Request.DNSNames), want) {
		t.Errorf("%q, %v", got.Request.DNSNames, err)
	}
}

func TestInvalidServiceNames(t *testing.T) {
	p := pod
	p.Namespace = "42"
	_, err := attributes.Parse(map[string]string{"service-names": "web"}, p, "", config())
	wantError(t, "namespace 42", err, `service-names: "web.42" ends in a number`)
	c := config()
	c.ClusterDomain = names.Must(names.ParseClusterDomain(strings.Repeat("abcdef.", 34) + "local"))
	_, err = attributes.Parse(map[string]string{"service-names": "web-server"}, pod, "", c)
	wantError(t, "a long domain", err, "service-names:")
}

// TestVariablesAddNothing uses pod names that no API server accepts.
func TestVariablesAddNothing(t *testing.T) {
	for name, wrong := range map[string]string{
		"a,b":          "is not a DNS name",
		"${POD_UID}":   "is not a DNS name",
		"10.0.0.1":     "put it into ip-sans",
		"":             "empty part",
		" a.example ":  "is not a DNS name",
		"*.a.b":        "",
		"Www.Example.": "leave out the dot",
	} {
		p := pod
		p.Name = name
		got, err := attributes.Parse(map[string]string{"dns-names": "${POD_NAME}", "common-name": "a"}, p, "", config())
		if wrong != "" {
			wantError(t, name, err, wrong)
		} else if err != nil || !slices.Equal(names.Texts(got.Request.DNSNames), []string{name}) {
			t.Errorf("%q: %q, %v", name, got.Request.DNSNames, err)
		}
	}
}

func TestDefaultCommonName(t *testing.T) {
	long := strings.Repeat("a", 60) + ".example.com"
	for _, c := range []struct{ pod, dns, want string }{
		{"web-0", "", pod.UID},
		{"step-ca-0", "", pod.UID},
		{"web-0", "www.example.com,example.com", "www.example.com"},
		{"web-0", long + ",example.com", "example.com"},
		{"web-0", long, "web-0"},
		{"web-0", "*.example.com", "*.example.com"},
		{strings.Repeat("a", 62) + "-0", long, strings.Repeat("a", 62) + "-0"},
		{strings.Repeat("a", 63) + "-0", long, pod.UID},
		{"postgres", long, pod.UID},
		{"postgres", "", pod.UID},
		{"admin-0.example.com", long, pod.UID},
		{"admin-0.example.com", "", pod.UID},
	} {
		p := pod
		p.Name = c.pod
		values := map[string]string{}
		if c.dns != "" {
			values["dns-names"] = c.dns
		}
		got, err := attributes.Parse(values, p, "", config())
		if err != nil || got.Request.CommonName.String() != c.want {
			t.Errorf("pod %s, names %s: %q, %v", c.pod, c.dns, got.Request.CommonName, err)
		}
	}
}

func TestOwnerGroupAndModes(t *testing.T) {
	for _, c := range []struct {
		mountGroup, group, owner, mode, keyMode string
		wantGroup, wantOwner                    int // -1 if unset
		wantMode, wantKeyMode                   os.FileMode
	}{
		{"", "", "", "", "", -1, 0, 0o444, 0o444},
		{"2000", "", "", "", "", 2000, 0, 0o440, 0o440},
		{"0", "", "", "", "", 0, 0, 0o440, 0o440},
		{"", "3000", "", "", "", 3000, 0, 0o440, 0o440},
		{"2000", "3000", "", "", "", 3000, 0, 0o440, 0o440},
		{"2000", "", "", "0400", "", 2000, 0, 0o400, 0o400},
		{"", "", "", "0400", "", -1, 0, 0o400, 0o400},
		{"", "", "", "0444", "0440", -1, 0, 0o444, 0o440},
		{"2000", "", "", "", "0400", 2000, 0, 0o440, 0o400},
		{"", "", "999", "", "", -1, 999, 0o444, 0o400},
		{"", "", "0", "", "", -1, 0, 0o444, 0o444},
		{"", "", "999", "", "0600", -1, 999, 0o444, 0o600},
		{"", "", "999", "0444", "", -1, 999, 0o444, 0o444},
		{"2000", "", "999", "", "", 2000, 999, 0o440, 0o440},
		{"2000", "", "999", "0644", "0640", 2000, 999, 0o644, 0o640},
	} {
		values := map[string]string{"fs-group": c.group, "owner-uid": c.owner, "file-mode": c.mode, "privatekey-mode": c.keyMode}
		maps.DeleteFunc(values, func(_, value string) bool { return value == "" })
		got, err := attributes.Parse(values, pod, c.mountGroup, config())
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		group := -1
		if got.Group != nil {
			group = *got.Group
		}
		if group != c.wantGroup || got.Owner != c.wantOwner || got.Mode != c.wantMode || got.PrivateKeyMode != c.wantKeyMode {
			t.Errorf("%+v: owner %d, group %d, modes %o and %o", c, got.Owner, group, got.Mode, got.PrivateKeyMode)
		}
	}
	_, err := attributes.Parse(nil, pod, "wheel", config())
	wantError(t, "mount group", err, `volume_mount_group: "wheel" is not a group ID`)
}

// TestDocumentation compares the package comment with the keys.
func TestDocumentation(t *testing.T) {
	source, err := os.ReadFile("attributes.go")
	if err != nil {
		t.Fatal(err)
	}
	comment, _, _ := strings.Cut(string(source), "\npackage ")
	var documented []string
	for line := range strings.Lines(comment) {
		if rest, found := strings.CutPrefix(line, "//\t"); found && rest[0] != ' ' {
			documented = append(documented, strings.Fields(rest)[0])
		}
	}
	if !slices.Equal(documented, attributes.Keys()) {
		t.Errorf("the package comment has the keys %q, the code has %q", documented, attributes.Keys())
	}
}

// A volume records the attributes of its pod, not the names that followed from them. So
// whatever the version before made of them, the next version requests names that the
// default policy allows: volumes are renewed across an upgrade.
func TestDefaultsSatisfyTheDefaultPolicy(t *testing.T) {
	p, err := policy.New(policy.Config{ClusterDomain: config().ClusterDomain, TrustDomain: config().TrustDomain})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("a", 60)
	for _, namespace := range append(names.Domains(), "shop", "kube-system") {
		for _, name := range []string{"web-0", "web-7d4b9c6f5-x2x8p", "postgres", "step-ca-0", "admin-0.example.com", strings.Repeat("a", 63) + "-0"} {
			for _, services := range []string{"", "web", "web,api", long} {
				pod := issuer.Pod{Namespace: namespace, Name: name, UID: pod.UID, ServiceAccount: "default", Node: "node-1"}
				values := map[string]string{}
				if services != "" {
					values["service-names"] = services
				}
				got, err := attributes.Parse(values, pod, "", config())
				if err != nil {
					t.Fatal(err)
				}
				if err := p.Check(t.Context(), pod, got.Request); err != nil {
					t.Errorf("pod %s/%s, service-names %q: %v", namespace, name, services, err)
				}
				for _, service := range got.Request.DNSNames {
					if service.String() == "web."+namespace && names.IsDomain(namespace, config().ClusterDomain) {
						t.Errorf("namespace %s got %s", namespace, service)
					}
				}
			}
		}
	}
}
