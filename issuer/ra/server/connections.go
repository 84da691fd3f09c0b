package server

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/flexstack/step-csi/issuer/ra"
)

// A connection is a stranger's until one of its calls is accepted: its caller has
// proved to be a node plugin. Anybody can open connections, so strangers get little,
// and for a short time. A node plugin whose address is also an attacker's (behind NAT or
// a proxy, or with hostNetwork) shares the bounds of strangers with the attacker until
// its first call is accepted, and nothing afterwards: an attack delays its new
// connections, and not its calls.
const (
	// acceptWithin is how long after it is opened a connection needs an accepted call.
	// It is longer than a review, whose error the caller should get.
	acceptWithin = reviewTimeout + 2*time.Second
	// maxStrangers and maxStrangersOfAddress bound the connections of strangers. At the
	// bound, the oldest is closed instead of refusing the new one, which may be a node
	// plugin's.
	maxStrangers          = 512
	maxStrangersOfAddress = 32
	// maxConnections and maxConnectionsOfNode bound the accepted connections. A node
	// plugin has one to each replica, and a second one while the first is drained.
	maxConnections       = 4096
	maxConnectionsOfNode = 8
	// connectionAge makes node plugins reconnect, so that they also find new replicas.
	connectionAge = 10 * time.Minute
	// maxCallsOfStrangers and maxCallsOfAddress bound the calls at a time on connections
	// of strangers. A connection has one of them identified at a time.
	maxCallsOfStrangers = 2048
	maxCallsOfAddress   = 256
	// maxStrikes is the number of rejected callers in a row after which a connection gets
	// no new calls. After twice as many it is closed, without waiting for its calls.
	maxStrikes = 4
	// firstAllowance is how many bytes a connection may send before its first call is
	// accepted: the TLS handshake, and a window of calls. It bounds the cost of frames
	// that are no calls.
	firstAllowance = 128 << 10
	// callAllowance is how many bytes each accepted call adds.
	callAllowance = ra.MaxRequest + maxHeaders + 16<<10
	// socketBuffer is the size of the kernel's buffer for received data. The kernel
	// doubles it for its own overhead.
	socketBuffer = 32 << 10
	// maxKnown bounds the addresses that are kept as known, for knownFor.
	maxKnown = 8192
	knownFor = time.Hour
)

// The rates of new connections: a TLS handshake takes half a millisecond of a core.
var (
	// strangersRate is that of an address that no node plugin has called from.
	strangersRate = Limit{Rate: 20, Burst: 64}
	// knownRate is that of an address that a node plugin has called from.
	knownRate = Limit{Rate: 200, Burst: 1000}
	// allStrangersRate is that of all addresses that no node plugin has called from.
	allStrangersRate = Limit{Rate: 500, Burst: 1000}
	// bytesRate is the number of bytes per second that are read from all strangers of an
	// address. It bounds the processor time for what they send.
	bytesRate = Limit{Rate: 256 << 10, Burst: 512 << 10}
)

// Why connections are refused or closed: values of the label "reason".
const (
	closedRate     = "rate"       // too many new connections of the address, or of all strangers
	closedCrowded  = "crowded"    // too many strangers
	closedLate     = "late"       // no accepted call within acceptWithin
	closedBytes    = "bytes"      // more bytes than calls need
	closedReplaced = "replaced"   // too many connections of a node, or of all nodes
	closedRejected = "rejections" // maxStrikes
	closedUnready  = "not_ready"  // a call after a handshake with a certificate that is not the CA's
)

// connections is a net.Listener that bounds the connections.
type connections struct {
	net.Listener
	closed *prometheus.CounterVec // by reason

	strangersRate, knownRate *limiter
	allStrangersRate         *rate.Limiter
	bytesRate                *limiter

	mu        sync.Mutex
	strangers map[netip.Prefix][]*connection // the oldest first
	nodes     map[string][]*connection       // accepted connections, the oldest first
	counts    struct{ strangers, accepted, calls int }
	calls     map[netip.Prefix]int       // of strangers
	known     map[netip.Prefix]time.Time // when a node plugin last called from there
}

func newConnections(l net.Listener, closed *prometheus.CounterVec) *connections {
	return &connections{
		Listener: l, closed: closed,
		strangersRate: newLimiter(strangersRate), knownRate: newLimiter(knownRate), bytesRate: newLimiter(bytesRate),
		calls:            map[netip.Prefix]int{},
		allStrangersRate: rate.NewLimiter(rate.Limit(allStrangersRate.Rate), allStrangersRate.Burst),
		strangers:        map[netip.Prefix][]*connection{}, nodes: map[string][]*connection{}, known: map[netip.Prefix]time.Time{},
	}
}

// Accept implements net.Listener.
func (l *connections) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := network(raw.RemoteAddr())
		if !l.allow(address) {
			l.closed.WithLabelValues(closedRate).Inc()
			raw.Close()
			continue
		}
		if tcp, ok := raw.(*net.TCPConn); ok {
			// The kernel's memory for what is not yet read is the container's, too.
			_ = tcp.SetReadBuffer(socketBuffer)
		}
		return l.add(raw, address), nil
	}
}

// network is what bounds apply to: an IPv4 address, or the /64 of an IPv6 address,
// because a host has all addresses of a /64.
func network(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 64
	if address.Is4() {
		bits = 32
	}
	prefix, _ := address.Prefix(bits)
	return prefix
}

// allow tells whether the address may open another connection now.
func (l *connections) allow(address netip.Prefix) bool {
	if l.isKnown(address) {
		return l.knownRate.allow(address.String())
	}
	return l.strangersRate.allow(address.String()) && l.allStrangersRate.Allow()
}

func (l *connections) isKnown(address netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	called, found := l.known[address]
	return found && time.Since(called) < knownFor
}

// add makes a stranger's connection, and closes another one if there are too many.
func (l *connections) add(raw net.Conn, address netip.Prefix) *connection {
	c := &connection{Conn: raw, listener: l, address: address, opened: time.Now(), turn: make(chan struct{}, 1)}
	c.expires = c.opened.Add(time.Duration((0.9 + 0.2*rand.Float64()) * float64(connectionAge)))
	c.allowance.Store(firstAllowance)
	l.mu.Lock()
	c.late = time.AfterFunc(acceptWithin, func() { c.end(closedLate) })
	l.strangers[address] = append(l.strangers[address], c)
	l.counts.strangers++
	var crowded *connection
	switch {
	case len(l.strangers[address]) > maxStrangersOfAddress:
		crowded = least(l.strangers[address])
	case l.counts.strangers > maxStrangers:
		// The address with the most: those with one connection are the last to lose it.
		var most []*connection
		for _, of := range l.strangers {
			if len(of) > len(most) {
				most = of
			}
		}
		crowded = least(most)
	}
	l.mu.Unlock()
	crowded.end(closedCrowded)
	return c
}

// least returns the connection to close among too many: the oldest without a call, and
// otherwise the oldest.
func least(strangers []*connection) *connection {
	for _, c := range strangers {
		if !c.called {
			return c
		}
	}
	return strangers[0]
}

// connection is a connection from its accept to its end.
type connection struct {
	net.Conn
	listener  *connections
	address   netip.Prefix
	opened    time.Time
	expires   time.Time   // when it has reached its age
	late      *time.Timer // closes it, unless a call is accepted
	allowance atomic.Int64
	strikes   atomic.Int32
	ended     atomic.Bool
	accepted  atomic.Bool
	unready   atomic.Bool   // its handshake had the certificate of unready
	turn      chan struct{} // holds an element while a call of a stranger is identified

	// Below are guarded by the listener's mutex.
	node   string // empty until it is accepted
	used   time.Time
	called bool
	gone   bool
}

// Read implements net.Conn. It slows strangers down, and closes the connection of a
// client that sends more than its calls need.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.accepted.Load() {
		// At most seconds, because each of the address's connections waits for one read.
		time.Sleep(c.listener.bytesRate.delay(c.address.String(), n))
	}
	if c.allowance.Add(-int64(n)) < 0 {
		c.end(closedBytes)
		return 0, net.ErrClosed
	}
	return n, err
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.ended.Store(true)
	l := c.listener
	l.mu.Lock()
	c.late.Stop()
	if !c.gone {
		c.gone = true
		l.remove(c)
	}
	l.mu.Unlock()
	return c.Conn.Close()
}

// end closes the connection for a reason. c may be nil.
func (c *connection) end(reason string) {
	if c == nil || c.ended.Swap(true) {
		return
	}
	c.listener.closed.WithLabelValues(reason).Inc()
	c.Close()
}

// remove removes the connection from where it is counted. The caller holds the mutex.
func (l *connections) remove(c *connection) {
	if c.node != "" {
		l.counts.accepted--
		removeFrom(l.nodes, c.node, c)
		return
	}
	l.counts.strangers--
	removeFrom(l.strangers, c.address, c)
}

func removeFrom[K comparable](all map[K][]*connection, key K, c *connection) {
	rest := slices.DeleteFunc(all[key], func(other *connection) bool { return other == c })
	if all[key] = rest; len(rest) == 0 {
		delete(all, key)
	}
}

// accept makes the connection that of the node plugin on the node, which has made an
// accepted call.
func (c *connection) accept(node string) {
	c.strikes.Store(0)
	c.allowance.Store(min(c.allowance.Load()+callAllowance, maxStreams*callAllowance))
	l := c.listener
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	c.late.Stop()
	c.used = now
	if c.gone || c.node == node {
		return
	}
	l.remove(c)
	c.node = node
	c.accepted.Store(true)
	l.nodes[node] = append(l.nodes[node], c)
	l.counts.accepted++
	l.learn(c.address, now)
	candidates := map[string][]*connection{} // of which the longest unused is closed
	switch {
	case len(l.nodes[node]) > maxConnectionsOfNode:
		candidates[node] = l.nodes[node]
	case l.counts.accepted > maxConnections:
		candidates = l.nodes
	}
	var replaced *connection
	for _, of := range candidates {
		for _, other := range of {
			if replaced == nil || other.used.Before(replaced.used) {
				replaced = other
			}
		}
	}
	if replaced != nil {
		go replaced.end(closedReplaced) // it needs the mutex
	}
}

// learn keeps the address as that of a node plugin. The caller holds the mutex.
func (l *connections) learn(address netip.Prefix, now time.Time) {
	if _, found := l.known[address]; !found && len(l.known) >= maxKnown {
		for other, called := range l.known {
			if now.Sub(called) >= knownFor {
				delete(l.known, other)
			}
		}
		if len(l.known) >= maxKnown {
			return
		}
	}
	l.known[address] = now
}

// enter waits until the call may be identified. The calls of an accepted connection need
// not wait, and those of a stranger are identified one after the other. The caller calls
// leave in any case.
func (c *connection) enter(ctx context.Context) (leave func(), err error) {
	if c.accepted.Load() {
		return func() {}, nil
	}
	l := c.listener
	l.mu.Lock()
	c.called = true
	l.counts.calls++
	l.calls[c.address]++
	crowded := l.counts.calls > maxCallsOfStrangers || l.calls[c.address] > maxCallsOfAddress
	l.mu.Unlock()
	release := func() {}
	leave = func() {
		release()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.counts.calls--
		if l.calls[c.address]--; l.calls[c.address] == 0 {
			delete(l.calls, c.address)
		}
	}
	if crowded {
		c.end(closedCrowded)
		return leave, net.ErrClosed
	}
	select {
	case c.turn <- struct{}{}:
		release = func() { <-c.turn }
	case <-ctx.Done():
		return leave, ctx.Err()
	}
	if c.accepted.Load() { // meanwhile: the others need not wait for this one
		release()
		release = func() {}
	}
	if c.ended.Load() {
		return leave, net.ErrClosed
	}
	return leave, nil
}

// strike counts a call with a rejected caller. It returns true if the connection is to
// get no new calls.
func (c *connection) strike() (last bool) {
	strikes := c.strikes.Add(1)
	if strikes >= 2*maxStrikes {
		c.end(closedRejected)
	}
	return strikes >= maxStrikes
}

// sizes returns the number of connections of strangers and of accepted ones.
func (l *connections) sizes() (strangers, accepted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts.strangers, l.counts.accepted
}

type connectionKey struct{}

// withConnection is for http.Server.ConnContext.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	return context.WithValue(ctx, connectionKey{}, c)
}

// connectionOf returns the connection of a request.
func connectionOf(ctx context.Context) *connection {
	return ctx.Value(connectionKey{}).(*connection)
}
