// Package proxy is a TCP proxy on loopback that fails on demand. It simulates the
// network between a real client and a real server.
package proxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flexstack/step-csi/test/loopback"
)

// Fault is a way in which the network fails. The zero value is None.
type Fault struct {
	kind  kind
	delay time.Duration
	after int64
}

type kind int

const (
	forward kind = iota
	refuse
	resetAtAccept
	resetAnswer
	blackhole
	truncate
)

var (
	// None forwards everything.
	None = Fault{}
	// Refuse closes the listener and resets all connections, as when the server's
	// process ends.
	Refuse = Fault{kind: refuse}
	// Reset resets all connections, new and existing.
	Reset = Fault{kind: resetAtAccept}
	// ResetAnswer forwards requests, and resets the connection instead of forwarding
	// the answer.
	ResetAnswer = Fault{kind: resetAnswer}
	// Blackhole accepts connections and drops all data, in both directions, also on
	// existing connections. These connections stay dead afterwards, as after a power
	// failure or after a firewall has lost its state.
	Blackhole = Fault{kind: blackhole}
)

// Delay delays each piece of data, in both directions.
func Delay(d time.Duration) Fault { return Fault{delay: d} }

// Truncate closes each connection, without a reset, after this many more bytes from
// the server.
func Truncate(after int64) Fault { return Fault{kind: truncate, after: after} }

// Proxy is a running proxy.
type Proxy struct {
	address string
	running sync.WaitGroup
	done    chan struct{} // closed by Close

	mu       sync.Mutex
	target   string
	listener net.Listener // nil while it refuses
	pipes    map[*pipe]struct{}
	fault    Fault

	connections, sent, answered atomic.Int64
}

// Start listens on a port of loopback for connections to target, a host:port.
func Start(target string) (*Proxy, error) {
	address, err := loopback.Address(loopback.IP)
	if err != nil {
		return nil, err
	}
	p := &Proxy{address: address, target: target, pipes: map[*pipe]struct{}{}, done: make(chan struct{})}
	if err := p.listen(); err != nil {
		return nil, err
	}
	return p, nil
}

// Address is the host:port that the proxy listens on.
func (p *Proxy) Address() string { return p.address }

// Connections returns the number of connections that were accepted so far.
func (p *Proxy) Connections() int64 { return p.connections.Load() }

// Bytes returns the number of bytes received from clients and from the server,
// forwarded or not.
func (p *Proxy) Bytes() (sent, answered int64) { return p.sent.Load(), p.answered.Load() }

// Set replaces the fault, also for existing connections.
func (p *Proxy) Set(f Fault) error {
	p.mu.Lock()
	p.fault = f
	refuses, listens := f.kind == refuse, p.listener != nil
	if refuses && listens {
		p.listener.Close()
		p.listener = nil
	}
	for each := range p.pipes {
		each.set(f)
	}
	p.mu.Unlock()
	if !refuses && !listens {
		return p.listen()
	}
	return nil
}

// To forwards new connections to another server, and resets the existing ones.
func (p *Proxy) To(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	for each := range p.pipes {
		each.end()
	}
}

// Close closes the proxy and all connections, and waits for its goroutines.
func (p *Proxy) Close() {
	close(p.done)
	_ = p.Set(Refuse)
	p.running.Wait()
}

func (p *Proxy) listen() error {
	listener, err := loopback.ListenAgain(p.address)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.listener = listener
	p.mu.Unlock()
	p.running.Go(func() { p.accept(listener) })
	return nil
}

func (p *Proxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return // the listener was closed
		}
		p.connections.Add(1)
		p.running.Go(func() { p.serve(client.(*net.TCPConn)) })
	}
}

// serve forwards one connection until it ends.
func (p *Proxy) serve(client *net.TCPConn) {
	each := newPipe(client)
	p.mu.Lock()
	each.set(p.fault)
	target := p.target
	p.pipes[each] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.pipes, each)
		p.mu.Unlock()
		each.end()
	}()
	if each.isOver() {
		return
	}
	// In a blackhole, no connection is made to the server.
	if each.fault().kind == blackhole {
		_, _ = io.Copy(counter{&p.sent}, client)
		return
	}
	connection, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	server := connection.(*net.TCPConn)
	if !each.join(server) {
		return
	}
	p.running.Go(func() {
		each.copy(client, server, &p.answered, p.done)
		if !each.isDead() { // a dead connection is not closed
			each.end()
		}
	})
	each.copy(server, client, &p.sent, p.done)
}

// counter counts the bytes that it drops.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(data []byte) (int, error) {
	c.n.Add(int64(len(data)))
	return len(data), nil
}
