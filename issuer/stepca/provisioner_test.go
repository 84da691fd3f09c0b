package stepca

import (
	"reflect"
	"testing"

	"go.step.sm/crypto/x509util"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// A token carries all names as strings, and step-ca guesses their types. The parser
// rejects the names whose type step-ca would guess wrong.
func TestStepCAGuessesTypesOfNames(t *testing.T) {
	var req issuer.Request
	for _, text := range []string{
		"web.shop", "*.web.shop.svc", "web", "xn--bcher-kva.example", "1.example.com",
		"10.0.0.1", "10.1", "::1", "::ffff:10.0.0.1", "fe80::1%eth0",
		"spiffe://cluster.local/ns/shop/sa/web", "https://[::1]:80/", "urn:a:b", "a:b", "/a", "mailto:a@b.example",
		"a@b.example", "a/b@c.example", "a+b=c@d.example", "a:b@c.example", `"a:b"@c.example`, "",
	} {
		if dns, err := names.ParseDNSName(text); err == nil {
			req.DNSNames = append(req.DNSNames, dns)
		}
		if ip, err := names.ParseIP(text); err == nil {
			req.IPAddresses = append(req.IPAddresses, ip)
		}
		if uri, err := names.ParseURI(text); err == nil {
			req.URIs = append(req.URIs, uri)
		}
		if address, err := names.ParseEmailAddress(text); err == nil {
			req.EmailAddresses = append(req.EmailAddresses, address)
		}
	}
	dns, ips, emails, uris := x509util.SplitSANs(req.AlternativeNames())
	got := [][]string{dns, names.Texts(ips), names.Texts(uris), emails}
	want := [][]string{names.Texts(req.DNSNames), names.Texts(req.IPAddresses), names.Texts(req.URIs), names.Texts(req.EmailAddresses)}
	if len(req.AlternativeNames()) != 12 || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
