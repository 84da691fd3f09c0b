package trust_test

import (
	"strings"
	"testing"

	"github.com/flexstack/step-csi/issuer/trust"
)

// URLs that mean the same come out the same: step-ca compares the audience of a token
// byte by byte.
func TestURLsAreNormalised(t *testing.T) {
	for text, want := range map[string]string{
		"https://ca.example.com":              "https://ca.example.com",
		"https://LOCALHOST:9000":              "https://localhost:9000",
		"HTTPS://Ca.Example.COM/":             "https://ca.example.com",
		"https://ca.example.com.":             "https://ca.example.com",
		"https://ca.example.com.:9000/":       "https://ca.example.com:9000",
		"https://ca.example.com:443":          "https://ca.example.com",
		"https://ca.example.com:0443/":        "https://ca.example.com",
		"https://ca.example.com:":             "https://ca.example.com",
		"https://ca.example.com:4430":         "https://ca.example.com:4430",
		"https://ca.example.com:009000":       "https://ca.example.com:9000",
		"https://bücher.example":              "https://xn--bcher-kva.example",
		"https://BÜCHER.example:9000":         "https://xn--bcher-kva.example:9000",
		"https://b%C3%BCcher.example":         "https://xn--bcher-kva.example",
		"https://ca。example。com":              "https://ca.example.com",
		"https://192.0.2.1:9000":              "https://192.0.2.1:9000",
		"https://[fd00::1]":                   "https://[fd00::1]",
		"https://[fd00::1]:443/":              "https://[fd00::1]",
		"https://[FD00:0:0::0001]:9000":       "https://[fd00::1]:9000",
		"https://[::1]:9000":                  "https://[::1]:9000",
		" https://ca.example.com:9000\n":      "https://ca.example.com:9000",
		"https://step-ca.step-ca.svc:9000///": "https://step-ca.step-ca.svc:9000",
	} {
		u, err := trust.ParseURL(text)
		if err != nil || u.String() != want {
			t.Errorf("%q: %v, %v, want %s", text, u, err, want)
			continue
		}
		if again, err := trust.ParseURL(u.String()); err != nil || *again != *u {
			t.Errorf("%s is not stable: %v, %v", u, again, err)
		}
	}
}

func TestHostPort(t *testing.T) {
	for text, want := range map[string]string{
		"https://ca.example.com": "ca.example.com:443", "https://[fd00::1]": "[fd00::1]:443", "https://[fd00::1]:9000": "[fd00::1]:9000",
	} {
		u, err := trust.ParseURL(text)
		if err != nil || trust.HostPort(u) != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// The error says what to change, and never repeats a password.
func TestURLsThatCannotWork(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "is missing",
		"ca.example.com":                 "https:// is missing",
		"ca.example.com:9000":            "https:// is missing",
		"//ca.example.com":               "https:// is missing",
		"http://ca.example.com":          "http is not possible",
		"https://":                       "the host is missing",
		"https://:9000":                  "the host is missing",
		"https://ca.example.com/1.0":     `leave out the path "/1.0"`,
		"https://ca.example.com/acme/a/": "leave out the path",
		"https://ca.example.com?x=1":     "query",
		"https://ca.example.com?":        "query",
		"https://ca.example.com#x":       "fragment",
		"https://admin:secret@ca":        "leave out the user name",
		"http://admin:secret@ca":         "http is not possible",
		"https://admin:secret@ca:x":      "invalid port",
		"https://ca.example.com:0":       "port",
		"https://ca.example.com:65536":   "port 65536",
		"https://ca.example.com:https":   "invalid port",
		"https://fd00::1:9000":           "needs brackets",
		"https://[fe80::1%25eth0]:9000":  `the zone "eth0"`,
		"https://[::ffff:192.0.2.1]":     "write it as 192.0.2.1",
		"https://[::]:9000":              "not the address of one host",
		"https://0.0.0.0:9000":           "not the address of one host",
		"https://127.1":                  "neither a DNS name nor an IP address",
		"https://*.example.com":          "neither",
		"https://ca..example.com":        "neither",
		"https://ca.example.com..":       "neither",
		"https://ca_1.example.com":       "neither",
		"https://ca.example.com\x00":     "control character",
	} {
		u, err := trust.ParseURL(text)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "https://<host>") {
			t.Errorf("%q: %v, %v, want %q", text, u, err, want)
			continue
		}
		if strings.Contains(err.Error(), "secret") || strings.ContainsRune(err.Error(), 0) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
