package attributes

import (
	"fmt"
	"net/netip"
)

func (p *parser) setIPAddresses(value string) (err error) {
	p.result.Request.IPAddresses, err = parseList(p, value, func(text string) (netip.Addr, error) {
		ip, err := netip.ParseAddr(text)
		switch {
		case err != nil || ip.Zone() != "":
			return ip, fmt.Errorf("%s is not an IP address", quote(text))
		case ip.Is4In6():
			return ip, fmt.Errorf("%s: write it as %s", quote(text), ip.Unmap())
		case ip.IsUnspecified() || ip.IsMulticast():
			return ip, fmt.Errorf("%s is not the address of one host", quote(text))
		}
		return ip, nil
	})
	return err
}
