package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// mostConnections and mostOfAddress bound the open connections: of all clients, and
	// of one IP address.
	mostConnections = 256
	mostOfAddress   = 64
	// kernelBuffer limits, for each connection and direction, what the kernel holds. The
	// kernel charges this memory to the cgroup of the process, and doubles the value.
	kernelBuffer = 16 << 10
	// lingerTime is how long a client has to read the end of a response. The connection
	// counts as open until then.
	lingerTime = 5 * time.Second
)

// connections is a listener for clients without authentication. It bounds the open
// connections by closing old ones: a new connection is never refused, because it can be
// that of the kubelet, which restarts the container if its probes fail.
//
// If an address has too many connections, the listener closes the oldest of them. If there
// are too many in total, it closes the oldest of the address that has the most. The state
// of a connection does not matter: a probe takes less than a millisecond, so its
// connection is among the newest, and a client that does not read looks busy.
type connections struct {
	net.Listener

	mu      sync.Mutex
	open    []*connection // from the oldest to the newest
	of      map[netip.Addr]int
	evicted uint64
}

// listenBounded listens on a TCP address.
func listenBounded(address string) (*connections, error) {
	config := net.ListenConfig{
		KeepAlive: -1, // the server's timeouts are shorter
		// Accepted connections inherit the buffers.
		Control: func(_, _ string, raw syscall.RawConn) error {
			var failed error
			if err := raw.Control(func(fd uintptr) {
				for _, buffer := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
					if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, buffer, kernelBuffer); err != nil {
						failed = fmt.Errorf("limit the socket's buffers: %w", err)
					}
				}
			}); err != nil {
				return err
			}
			return failed
		},
	}
	config.SetMultipathTCP(false) // its sockets hold more than these buffers
	listener, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return &connections{Listener: listener, of: map[netip.Addr]int{}}, nil
}

// Accept implements net.Listener.
func (l *connections) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &connection{TCPConn: accepted.(*net.TCPConn), listener: l}
	if from, ok := accepted.RemoteAddr().(*net.TCPAddr); ok {
		c.from = from.AddrPort().Addr().Unmap()
	}
	if victim := l.add(c); victim != nil {
		victim.reset()
	}
	return c, nil
}

// add adds a connection, and returns the one to close in its place, or nil.
func (l *connections) add(c *connection) (victim *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if victim = l.victim(c.from); victim != nil {
		l.removeLocked(victim)
		l.evicted++
	}
	l.open = append(l.open, c)
	l.of[c.from]++
	return victim
}

// victim returns the connection to close for a new connection of the address.
func (l *connections) victim(address netip.Addr) *connection {
	most := l.of[address]
	switch {
	case most >= mostOfAddress:
		return l.oldest(func(c *connection) bool { return c.from == address })
	case len(l.open) >= mostConnections:
		for _, n := range l.of {
			most = max(most, n)
		}
		return l.oldest(func(c *connection) bool { return l.of[c.from] == most })
	}
	return nil
}

func (l *connections) oldest(matches func(*connection) bool) *connection {
	if i := slices.IndexFunc(l.open, matches); i >= 0 {
		return l.open[i]
	}
	return nil
}

func (l *connections) remove(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeLocked(c)
}

func (l *connections) removeLocked(c *connection) {
	i := slices.Index(l.open, c)
	if i < 0 {
		return
	}
	l.open = slices.Delete(l.open, i, i+1)
	if l.of[c.from]--; l.of[c.from] == 0 {
		delete(l.of, c.from)
	}
}

// countEvicted returns how many connections were closed in favor of new ones.
func (l *connections) countEvicted() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.evicted)
}

// closeAll closes all connections, after the server has stopped.
func (l *connections) closeAll() {
	l.mu.Lock()
	open := slices.Clone(l.open)
	l.mu.Unlock()
	for _, c := range open {
		l.remove(c)
		_ = c.TCPConn.Close()
	}
}

// connection is an accepted connection.
type connection struct {
	*net.TCPConn
	listener *connections
	from     netip.Addr
	closing  sync.Once
}

// Close ends the use of the connection, but leaves the kernel the time to send what it
// holds. After a close(2) at once, this memory would belong to no connection, and a
// client that does not read could have any amount of it.
func (c *connection) Close() error {
	c.closing.Do(func() {
		_ = c.CloseWrite()
		_ = c.SetDeadline(time.Unix(1, 0)) // ends calls in progress
		time.AfterFunc(lingerTime, c.reset)
	})
	return nil
}

// reset closes the connection, and frees what the kernel holds for it.
func (c *connection) reset() {
	c.closing.Do(func() {}) // Close has nothing more to do
	_ = c.SetLinger(0)
	_ = c.TCPConn.Close()
	c.listener.remove(c) // it has counted until now
}
