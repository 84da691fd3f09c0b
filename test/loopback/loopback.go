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
	"syscall"
	"time"
)

// IP is the usual address.
const IP = "127.0.0.1"

const firstPort, blocks, blockSize = 61000, 45, 100

// pool gives away the ports of this process.
type pool struct {
	name string // of the sockets that are claims

	mu     sync.Mutex
	ports  []int
	next   int            // index of the next port to give away
	claims []net.Listener // one for each block of ports
}

var own = pool{name: "@step-csi-test-ports-"}

// claim adds a block of ports that no other process has. An abstract Unix socket is the
// claim: it is in the same network namespace as the ports, and ends with the process.
func (p *pool) claim() error {
	for _, block := range rand.Perm(blocks) {
		socket, err := net.Listen("unix", p.name+fmt.Sprint(block))
		if err != nil {
			continue // another process has it
		}
		p.claims = append(p.claims, socket)
		for i := range blockSize {
			p.ports = append(p.ports, firstPort+block*blockSize+i)
		}
		return nil
	}
	return errors.New("other processes of tests have all ports")
}

// port returns the next port. Once there are no others, it returns a port that was given
// away before.
func (p *pool) port() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == len(p.ports) {
		if err := p.claim(); err != nil && len(p.ports) == 0 {
			return 0, err
		} else if err != nil {
			p.next = 0
		}
	}
	p.next++
	return p.ports[p.next-1], nil
}

// Listen listens on a free port of the IP address. No other call gets this port.
func Listen(ip string) (net.Listener, error) {
	var taken error
	for range 1000 {
		port, err := own.port()
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
	// A process that is being started would keep the port until it has closed the listener.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	listener, err := Listen(ip)
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// ListenAgain listens on an address of Listen or Address, whose listener was closed. A process that
// was being started at that time keeps the port until it has closed its copy of the listener.
func ListenAgain(address string) (listener net.Listener, err error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		listener, err = net.Listen("tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			return listener, err
		}
	}
}
