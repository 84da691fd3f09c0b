package proxy

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// pipe is one connection through the proxy.
type pipe struct {
	client *net.TCPConn

	mu     sync.Mutex
	server *net.TCPConn // nil until it is connected
	now    Fault
	left   int64 // bytes from the server until the connection is truncated
	dead   bool  // all data is dropped
	over   bool
}

func newPipe(client *net.TCPConn) *pipe { return &pipe{client: client} }

// set replaces the fault of the connection.
func (p *pipe) set(f Fault) {
	p.mu.Lock()
	p.now, p.left = f, f.after
	p.dead = p.dead || f.kind == blackhole
	p.mu.Unlock()
	if f.kind == refuse || f.kind == resetAtAccept {
		p.end()
	}
}

func (p *pipe) fault() Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (p *pipe) isOver() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

func (p *pipe) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// join sets the server's side. If the pipe is over, join closes the server's side and
// returns false.
func (p *pipe) join(server *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		server.Close()
		return false
	}
	p.server = server
	return true
}

// end resets both sides, so that a truncated answer does not look complete.
func (p *pipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.over = true
	for _, side := range []*net.TCPConn{p.client, p.server} {
		if side != nil {
			_ = side.SetLinger(0)
			_ = side.Close()
		}
	}
}

// copy forwards data from one side to the other, subject to the fault, until one of
// them is closed.
func (p *pipe) copy(to, from *net.TCPConn, count *atomic.Int64, done <-chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		count.Add(int64(n))
		if n > 0 {
			if d := p.fault().delay; d > 0 {
				select {
				case <-time.After(d):
				case <-done:
				}
			}
			data, over := p.pass(buffer[:n], from == p.client)
			if _, err := to.Write(data); err != nil || over {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass returns how much of the data is forwarded, and whether that ends the
// connection.
func (p *pipe) pass(data []byte, fromClient bool) (passed []byte, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.dead:
		return nil, false
	case fromClient:
		return data, false
	case p.now.kind == resetAnswer:
		return nil, true
	case p.now.kind == truncate && int64(len(data)) >= p.left:
		_, _ = p.client.Write(data[:p.left])
		_ = p.client.CloseWrite()
		p.dead = true
		return nil, false
	}
	p.left -= int64(len(data))
	return data, false
}
