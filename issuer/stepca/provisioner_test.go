package stepca

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/issuer"
)

// TestUnambiguous gives names that policies refuse one by one before.
func TestUnambiguous(t *testing.T) {
	for what, r := range map[string]issuer.Request{
		"an address among DNS names":   {DNSNames: []string{"10.0.0.1"}},
		"a URI among DNS names":        {DNSNames: []string{"a:b"}},
		"an e-mail among DNS names":    {DNSNames: []string{"a@b"}},
		"nothing among DNS names":      {DNSNames: []string{"a", ""}},
		"a URI among e-mail addresses": {EmailAddresses: []string{"a:b@c"}},
		"an address in IPv6 clothes":   {IPAddresses: []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}},
		"a relative URI":               {URIs: []*url.URL{{Path: "a"}}},
	} {
		if _, err := sans(r); !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "of another type") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
