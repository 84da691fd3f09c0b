package names

import (
	"fmt"
	"net/netip"
)

// IP is the IP address of one host, without a zone.
type IP struct{ address netip.Addr }

// String returns the address in the form of RFC 5952.
func (ip IP) String() string { return ip.address.String() }

// Addr returns the address.
func (ip IP) Addr() netip.Addr { return ip.address }

// ParseIP rejects IPv4-mapped IPv6 addresses, because crypto/x509 rewrites them
// silently, and addresses with a zone, because certificates have no room for it.
func ParseIP(text string) (IP, error) {
	address, err := netip.ParseAddr(text)
	switch {
	case err != nil || address.Zone() != "":
		return IP{}, fmt.Errorf("%s is not an IP address without a zone, such as 10.0.0.1 or 2001:db8::1", Quote(text))
	case address.Is4In6():
		return IP{}, fmt.Errorf("%s: write it as %s", Quote(text), address.Unmap())
	case address.IsUnspecified() || address.IsMulticast() || address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return IP{}, fmt.Errorf("%s is not the address of one host", Quote(text))
	}
	return IP{address}, nil
}
