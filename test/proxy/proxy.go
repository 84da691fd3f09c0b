// Package proxy is a TCP proxy on loopback that breaks on demand: between a client
// and a server that are both real, it is the network which fails.
package proxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is what is wrong with the network. The zero value is nothing.
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
	// Refuse closes the listener and ends all connections, as when the server's
	// process ends.
	Refuse = Fault{kind: refuse}
	// Reset answers new connections with RST, and ends those that there are by one.
	Reset = Fault{kind: resetAtAccept}
	// ResetAnswer lets requests through, and sends RST instead of what the server
	// has to say.
	ResetAnswer = Fault{kind: resetAnswer}
	// Blackhole accepts connections and swallows what they send, and what comes back
	// over those that there are. They stay dead when it is over: their machine has
	// lost its power, or a firewall what it knew of them.
	Blackhole = Fault{kind: blackhole}
)

// Delay holds up each piece of data for so long, both ways.
func Delay(d time.Duration) Fault { return Fault{delay: d} }

// Truncate ends each connection, without RST, after so many more bytes from the
// server.
func Truncate(after int64) Fault { return Fault{kind: truncate, after: after} }

// Proxy is a running one.
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
	p := &Proxy{address: "127.0.0.1:0", target: target, pipes: map[*pipe]struct{}{}, done: make(chan struct{})}
	if err := p.listen(); err != nil {
		return nil, err
	}
	p.address = p.listener.Addr().String()
	return p, nil
}

// Address is the host:port that it listens on.
func (p *Proxy) Address() string { return p.address }

// Connections counts those that were accepted, whatever became of them.
func (p *Proxy) Connections() int64 { return p.connections.Load() }

// Bytes counts what came from clients and what came from the server, forwarded or
// not.
func (p *Proxy) Bytes() (sent, answered int64) { return p.sent.Load(), p.answered.Load() }

// Set makes the fault the one that there is from now on, also for connections that
// there are.
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

// To sends new connections to another server, and ends those that there are.
func (p *Proxy) To(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	for each := range p.pipes {
		each.end()
	}
}

// Close ends the proxy and all connections. It returns when nothing of it runs any
// more.
func (p *Proxy) Close() {
	close(p.done)
	_ = p.Set(Refuse)
	p.running.Wait()
}

func (p *Proxy) listen() error {
	listener, err := net.Listen("tcp", p.address)
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
			return // it was closed
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
	// A machine that has no power does not connect to anything.
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
		if !each.isDead() { // else nobody hears of the end
			each.end()
		}
	})
	each.copy(server, client, &p.sent, p.done)
}

// counter counts what it swallows.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(data []byte) (int, error) {
	c.n.Add(int64(len(data)))
	return len(data), nil
}
