// Package loopback has addresses for servers that tests stop and start again. Their ports
// are above the kernel's ephemeral ports, so that no outgoing connection takes one while
// its server is down, and no other process of tests takes them either.
package loopback

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// IP is the usual address.
const IP = "127.0.0.1"

const firstPort, blocks, blockSize = 61000, 45, 100

// own are the ports of this process.
var own struct {
	mu     sync.Mutex
	ports  []int
	next   int            // index of the next port to give away
	claims []net.Listener // one for each block of ports
}

// claim adds a block of ports that no other process has. An abstract Unix socket is the
// claim: it is in the same network namespace as the ports, and ends with the process.
func claim() error {
	for _, block := range rand.Perm(blocks) {
		socket, err := net.Listen("unix", fmt.Sprintf("@step-csi-test-ports-%d", block))
		if err != nil {
			continue // another process has it
		}
		own.claims = append(own.claims, socket)
		for i := range blockSize {
			own.ports = append(own.ports, firstPort+block*blockSize+i)
		}
		return nil
	}
	return errors.New("other processes of tests have all ports")
}

// port returns the next port. Once there are no others, it returns a port that was given
// away before.
func port() (int, error) {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.next == len(own.ports) {
		if err := claim(); err != nil && len(own.ports) == 0 {
			return 0, err
		} else if err != nil {
			own.next = 0
		}
	}
	own.next++
	return own.ports[own.next-1], nil
}

// Listen listens on a free port of the IP address. No other call gets this port.
func Listen(ip string) (net.Listener, error) {
	var taken error
	for range 1000 {
		port, err := port()
		if err != nil {
			return nil, err
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(ip, fmt.Sprint(port)))
		if err == nil {
			return listener, nil
		}
		taken = err
	}
	return nil, fmt.Errorf("no port is free: %w", taken)
}

// Address returns the IP address with a free port.
func Address(ip string) (string, error) {
	listener, err := Listen(ip)
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}
