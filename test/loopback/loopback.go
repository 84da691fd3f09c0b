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

// reservations has a listener for each port that this process has given to a server, which may
// not listen yet, or may be restarting.
var reservations sync.Map

// reserve reserves the port until the process ends, on all addresses and for all processes in the
// network namespace that use this package.
func reserve(port int) error {
	// The name is an abstract one: it exists only as long as the socket is open.
	reservation, err := net.Listen("unix", fmt.Sprintf("@step-csi-test-port-%d", port))
	if err != nil {
		return fmt.Errorf("port %d is given to another server: %w", port, err)
	}
	reservations.Store(port, reservation) // or the garbage collector closes it
	return nil
}

// Listen listens on a free port of the IP address. No other call gets this port, also while the
// server does not listen.
func Listen(ip string) (listener net.Listener, err error) {
	for range 1000 {
		port := firstPort + rand.IntN(ports)
		if err = reserve(port); err != nil {
			continue
		}
		if listener, err = net.Listen("tcp", net.JoinHostPort(ip, fmt.Sprint(port))); err == nil {
			return listener, nil
		}
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
