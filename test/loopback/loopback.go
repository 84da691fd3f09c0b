// Package loopback has addresses for servers that tests stop and start again. Their ports
// are above the kernel's ephemeral ports, so that no outgoing connection takes one while
// its server is down.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// IP is the usual address.
const IP = "127.0.0.1"

const firstPort, ports = 61000, 4500

// given has the ports that this process has given to a server, which may not listen yet.
var given sync.Map

// Listen listens on a free port of the IP address. No other call gets this port.
func Listen(ip string) (listener net.Listener, err error) {
	for range 1000 {
		port := firstPort + rand.IntN(ports)
		if listener, err = net.Listen("tcp", net.JoinHostPort(ip, fmt.Sprint(port))); err != nil {
			continue
		}
		if _, taken := given.LoadOrStore(port, true); !taken {
			return listener, nil
		}
		listener.Close()
		err = fmt.Errorf("port %d is given to another server", port)
	}
	return nil, err
}

// Address returns the IP address with a free port.
func Address(ip string) (string, error) {
	listener, err := Listen(ip)
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}
