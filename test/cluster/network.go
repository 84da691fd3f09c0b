package main

import (
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
)

// setUpNetwork makes the node's address. The network namespace has no link to the
// machine's network.
func setUpNetwork() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "node0"
	// A veth pair, because not every kernel has dummy interfaces. Pods need veth anyway.
	link := &netlink.Veth{LinkAttrs: attributes, PeerName: "node0-peer"}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	peer, err := netlink.LinkByName(link.PeerName)
	if err != nil {
		return err
	}
	for _, end := range []netlink.Link{link, peer} {
		if err := netlink.LinkSetUp(end); err != nil {
			return err
		}
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeIP), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(link, address); err != nil {
		return err
	}
	// Without a route, packets to service addresses do not reach kube-proxy's rules.
	_, everything, _ := net.ParseCIDR("0.0.0.0/0")
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everything}); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}
