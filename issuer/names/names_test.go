package names_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/flexstack/step-csi/issuer/names"
)

// text adapts the Parse function of any type to strings.
func text[T fmt.Stringer](parse func(string) (T, error)) func(string) (string, error) {
	return func(s string) (string, error) {
		value, err := parse(s)
		return value.String(), err
	}
}

var parsers = map[string]func(string) (string, error){
	"DNS name":       text(names.ParseDNSName),
	"IP":             text(names.ParseIP),
	"host":           text(names.ParseHost),
	"URI":            text(names.ParseURI),
	"e-mail":         text(names.ParseEmailAddress),
	"common name":    text(names.ParseCommonName),
	"cluster domain": text(names.ParseClusterDomain),
	"trust domain":   text(names.ParseTrustDomain),
}

func TestParse(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, test := range []struct{ kind, in, want, wrong string }{
		{"DNS name", "a.example.com", "a.example.com", ""},
		{"DNS name", "*.Example.com", "*.example.com", ""},
		{"DNS name", "Bücher.example", "xn--bcher-kva.example", ""},
		{"DNS name", "xn--bcher-kva.example", "xn--bcher-kva.example", ""},
		{"DNS name", "ａ。example", "a.example", ""},
		{"DNS name", "1.example", "1.example", ""},
		{"DNS name", "my--app.shop", "my--app.shop", ""},
		{"DNS name", strings.Repeat(long+".", 3) + strings.Repeat("b", 61), strings.Repeat(long+".", 3) + strings.Repeat("b", 61), ""},
		{"DNS name", strings.Repeat(long+".", 3) + strings.Repeat("b", 62), "", "253 bytes"},
		{"DNS name", "*." + strings.Repeat(long+".", 3) + strings.Repeat("b", 60), "", "253"},
		{"DNS name", "a.example.com.", "", "leave out the dot"},
		{"DNS name", "a.example.com。", "", "is not a DNS name"},
		{"DNS name", "a_b.example", "", "is not a DNS name"},
		{"DNS name", "web\x00.example", "", `"web\x00.example" is not a DNS name`},
		{"DNS name", "web\xff", "", "is not a DNS name"},
		{"DNS name", "xn--webprod-8o3f.svc", "", "is not a DNS name"}, // web。prod.svc
		{"DNS name", "aℷ.example", "", "is not a DNS name"},
		{"DNS name", "", "", "is not a DNS name"},
		{"DNS name", "10.0.0.1", "", "is an IP address"},
		{"DNS name", "::1", "", "is an IP address"},
		{"DNS name", "10.1", "", "ends in a number"},
		{"DNS name", "a.0x7f", "", "ends in a number"},
		{"DNS name", "0x7f", "", "ends in a number"},
		{"DNS name", "１.２.３.４", "", "ends in a number"},
		{"DNS name", "*", "", "a * must be"},
		{"DNS name", "*.com", "", "at least two labels"},
		{"DNS name", "a.*.com", "", "a * must be"},
		{"DNS name", strings.Repeat("a", 500) + "\n", "", `"` + strings.Repeat("a", 80) + `"… is not`},

		{"IP", "10.0.0.1", "10.0.0.1", ""},
		{"IP", "2001:DB8::0:1", "2001:db8::1", ""},
		{"IP", "10.0.0.01", "", "is not an IP address"},
		{"IP", "10.1", "", "is not an IP address"},
		{"IP", "fe80::1%eth0", "", "without a zone"},
		{"IP", "::ffff:10.0.0.1", "", "write it as 10.0.0.1"},
		{"IP", "0.0.0.0", "", "one host"},
		{"IP", "ff02::1", "", "one host"},
		{"IP", "", "", "is not an IP address"},

		{"host", "CA.example.com.", "ca.example.com", ""},
		{"host", "10.0.0.1", "10.0.0.1", ""},
		{"host", "::1", "::1", ""},
		{"host", "*.example.com", "", "neither a DNS name nor an IP address"},
		{"host", "ca.example.com..", "", "neither"},
		{"host", "10.1", "", "neither"},
		{"host", "", "", "neither"},

		{"URI", "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web", ""},
		{"URI", "spiffe://trust_domain", "spiffe://trust_domain", ""},
		{"URI", "https://example.com/a?b=c&d#e", "https://example.com/a?b=c&d#e", ""},
		{"URI", "https://[::1]:80/", "https://[::1]:80/", ""},
		{"URI", "spiffe://a/" + strings.Repeat("b", 2048-11), "spiffe://a/" + strings.Repeat("b", 2048-11), ""},
		{"URI", "spiffe://a/" + strings.Repeat("b", 2049-11), "", "longer than 2048 bytes"},
		{"URI", "spiffe://" + strings.Repeat("a", 256), "", "at most 255 bytes"},
		{"URI", "spiffe://cluster.local/", "", "is not a SPIFFE ID"},
		{"URI", "spiffe://cluster.local/a?b", "", "is not a SPIFFE ID"},
		{"URI", "spiffe://cluster.local:80/a", "", "is not a SPIFFE ID"},
		{"URI", "spiffe://cluster.local/a~b", "", "is not a SPIFFE ID"},
		{"URI", "SPIFFE://cluster.local/a", "", `write it as "spiffe://cluster.local/a"`},
		{"URI", "https://Example.com", "", `write it as "https://example.com"`},
		{"URI", "https://user@example.com", "", "leave out the user"},
		{"URI", "https://example.com/%61", "", "percent-encoding"},
		{"URI", "https://example.com/a b", "", "printable ASCII"},
		{"URI", "https://example.com/a/../b", "", "dot segment"},
		{"URI", "https://example.com//a", "", "empty segment"},
		{"URI", "https://10.1/", "", "the host must be"},
		{"URI", "https://0x7f/", "", "the host must be"},
		{"URI", "https://example.com./", "", "the host must be"},
		{"URI", "urn:a:b", "", "scheme and host"},
		{"URI", "mailto:a@b.example", "", "scheme and host"},
		{"URI", "/a", "", "scheme and host"},

		{"e-mail", "a.b+c@example.com", "a.b+c@example.com", ""},
		{"e-mail", "A@example.com", "", "lower-case"},
		{"e-mail", "a@b@example.com", "", "is not an e-mail address"},
		{"e-mail", "a@b,c@d", "", "is not an e-mail address"},
		{"e-mail", `"a"@example.com`, "", "is not an e-mail address"},
		{"e-mail", "Admin <admin@example.com>", "", "is not an e-mail address"},
		{"e-mail", strings.Repeat("a", 300) + "@example.com", "", "254 bytes"},
		{"e-mail", "a@10.0.0.1", "", "must be a DNS name"},
		{"e-mail", "a@[10.0.0.1]", "", "must be a DNS name"},

		{"common name", "John Doe", "John Doe", ""},
		{"common name", "Jürgen Müller, 東京", "Jürgen Müller, 東京", ""},
		{"common name", "WEB.example.", "WEB.example.", ""},
		{"common name", strings.Repeat("a", 64), strings.Repeat("a", 64), ""},
		{"common name", strings.Repeat("a", 65), "", "1 to 64 bytes"},
		{"common name", "", "", "1 to 64 bytes"},
		{"common name", " a", "", "blanks at the ends"},
		{"common name", "a ", "", "blanks at the ends"},
		{"common name", "a\x00", "", "not printable"},
		{"common name", "a\nb", "", "not printable"},
		{"common name", "a\u00a0b", "", "not printable"},
		{"common name", "a\u200bb", "", "not printable"},
		{"common name", "a\u202eb", "", "not printable"},
		{"common name", "a\xff", "", "not printable"},

		{"cluster domain", "cluster.local", "cluster.local", ""},
		{"cluster domain", "k8s", "k8s", ""},
		{"cluster domain", "Cluster.local", "", `write it as "cluster.local"`},
		{"cluster domain", "cluster.local.", "", "leave out the dot"},
		{"cluster domain", "*.cluster.local", "", "leave out the *"},
		{"cluster domain", "svc", "", "must not end in svc"},
		{"cluster domain", "example.svc", "", "must not end in svc"},
		{"cluster domain", "", "", "is not a DNS name"},

		{"trust domain", "cluster.local", "cluster.local", ""},
		{"trust domain", "a_b", "a_b", ""},
		{"trust domain", "Example.org", "", "lower-case letters"},
		{"trust domain", "spiffe://example.org", "", "is not a trust domain"},
		{"trust domain", "example.org/ns", "", "is not a trust domain"},
		{"trust domain", "", "", "is not a trust domain"},
		{"trust domain", strings.Repeat("a", 256), "", "255 bytes"},
	} {
		got, err := parsers[test.kind](test.in)
		switch {
		case test.wrong == "" && (err != nil || got != test.want):
			t.Errorf("%s %.90q: %q, %v, want %q", test.kind, test.in, got, err, test.want)
		case test.wrong != "" && (err == nil || !strings.Contains(err.Error(), test.wrong)):
			t.Errorf("%s %.90q: got %q and the error %v, want an error with %q", test.kind, test.in, got, err, test.wrong)
		case err != nil && (got != names.IP{}.String() && got != "" || len(err.Error()) > 400):
			t.Errorf("%s %.90q: the value %q, an error of %d bytes", test.kind, test.in, got, len(err.Error()))
		}
	}
}

func TestSPIFFEID(t *testing.T) {
	domain := names.Must(names.ParseTrustDomain("example.org"))
	uri, err := names.PodSPIFFEID(domain, "shop", "web.v1")
	if err != nil {
		t.Fatal(err)
	}
	id, ok := uri.SPIFFEID()
	if !ok || id.String() != "spiffe://example.org/ns/shop/sa/web.v1" || id.TrustDomain() != domain || uri.URL().Host != "example.org" {
		t.Errorf("%s, %t, %+v", id, ok, uri.URL())
	}
	if _, ok := names.Must(names.ParseURI("https://example.org")).SPIFFEID(); ok {
		t.Error("an https URI counts as a SPIFFE ID")
	}
	for _, account := range []string{"../../other/sa/web", "a/b", "", "a b"} {
		if id, err := names.PodSPIFFEID(domain, "shop", account); err == nil {
			t.Errorf("account %q: %s", account, id)
		}
	}
}

func TestExactly(t *testing.T) {
	if _, err := names.ParseAll(names.Exactly(names.ParseDNSName), "a.b", "A.b"); err == nil || err.Error() != `"A.b": write it as "a.b"` {
		t.Errorf("got %v", err)
	}
	if _, err := names.Exactly(names.ParseDNSName)("a..b"); err == nil || !strings.Contains(err.Error(), "is not a DNS name") {
		t.Errorf("got %v", err)
	}
}

func TestCheckTotal(t *testing.T) {
	hundred := strings.Split(strings.Repeat("a", names.MaxNames), "")
	for what, test := range map[string]struct {
		texts []string
		wrong string
	}{
		"none":          {nil, ""},
		"100 names":     {hundred, ""},
		"101 names":     {append(hundred, "a"), "101 names are too many for one certificate; the limit is 100"},
		"8 KiB":         {[]string{strings.Repeat("a", 4096), strings.Repeat("b", 4096)}, ""},
		"one byte more": {[]string{strings.Repeat("a", 4096), strings.Repeat("b", 4097)}, "8193 bytes"},
	} {
		err := names.CheckTotal(test.texts)
		if test.wrong == "" && err != nil || test.wrong != "" && (err == nil || !strings.Contains(err.Error(), test.wrong)) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestKubernetesNames(t *testing.T) {
	for text, want := range map[string][2]bool{ // whether valid as a label, as a subdomain
		"web-0":                  {true, true},
		"a.b-c":                  {false, true},
		strings.Repeat("a", 63):  {true, true},
		strings.Repeat("a", 64):  {false, true},
		strings.Repeat("a", 253): {false, true},
		strings.Repeat("a", 254): {false, false},
		"":                       {false, false},
		"Web":                    {false, false},
		"a..b":                   {false, false},
		"-a":                     {false, false},
		"a\n":                    {false, false},
		"shop/sa/root":           {false, false},
	} {
		label, subdomain := names.CheckLabel(text), names.CheckSubdomain(text)
		if (label == nil) != want[0] || (subdomain == nil) != want[1] {
			t.Errorf("%.90q: %v; %v", text, label, subdomain)
		}
	}
}

// FuzzParse checks that every name has one spelling: parsing a parsed name changes
// nothing.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"a.example.com", "*.Example.com", "Bücher.example", "faß.example", "xn--fa-hia.example", "ａ。example", "10.0.0.1", "::FFFF:10.0.0.1",
		"fe80::1%eth0", "CA.example.", "spiffe://cluster.local/ns/shop/sa/web", "HTTPS://[2001:DB8::01]:0443/a/../b?c#d", "https://10.1",
		"admin@example.com", "John Doe", "a\u0301", "\u1e9e", "cluster.local", "ẞ.example", "aℷ.example", "xn--webprod-8o3f.svc",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for kind, parse := range parsers {
			got, err := parse(in)
			if err != nil {
				if s := err.Error(); len(s) > 4096 || !utf8.ValidString(s) || strings.ContainsAny(s, "\n\x00") {
					t.Errorf("%s %q: the error %q", kind, in, s)
				}
				continue
			}
			if again, err := parse(got); err != nil || again != got {
				t.Errorf("%s %q: %q parses to %q, %v", kind, in, got, again, err)
			}
			if kind != "common name" && strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("%s %q: %q is not plain ASCII", kind, in, got)
			}
		}
	})
}
