package server

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// from is a connection from an address, whose other end sends nothing.
type from struct {
	net.Conn
	address string
}

func (f from) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(f.address), 1))
}

// offered is a net.Listener that accepts what the test offers.
type offered chan net.Conn

func (o offered) Accept() (net.Conn, error) {
	c, more := <-o
	if !more {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (o offered) Close() error { return nil }
func (o offered) Addr() net.Addr {
	return &net.TCPAddr{}
}

// bounded is connections for a test, which come from anywhere.
type bounded struct {
	*connections
	t       *testing.T
	offered offered
}

func newBounded(t *testing.T) *bounded {
	o := make(offered, 1)
	closed := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "closed"}, []string{"reason"})
	b := &bounded{newConnections(o, closed), t, o}
	b.strangersRate, b.knownRate = newLimiter(Limit{1e9, 1e9}), newLimiter(Limit{1e9, 1e9})
	b.allStrangersRate.SetLimit(rate.Inf)
	t.Cleanup(func() {
		for _, of := range b.strangers {
			for _, c := range append([]*connection(nil), of...) {
				c.Close()
			}
		}
		for _, of := range b.nodes {
			for _, c := range append([]*connection(nil), of...) {
				c.Close()
			}
		}
		if strangers, accepted := b.sizes(); strangers+accepted != 0 || len(b.strangers)+len(b.nodes) != 0 {
			t.Errorf("all are closed, but %d and %d are counted", strangers, accepted)
		}
	})
	return b
}

// open opens a connection from the address. far is the client's end.
func (b *bounded) open(address string) (c *connection, far net.Conn) {
	b.t.Helper()
	near, far := net.Pipe()
	b.offered <- from{near, address}
	accepted, err := b.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	return accepted.(*connection), far
}

func isClosed(far net.Conn) bool {
	_ = far.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := far.Read(make([]byte, 1))
	return err == io.EOF
}

// A connection without an accepted call is closed within seconds, whatever it sends. An
// accepted one is not.
func TestStrangersAreClosedWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		_, silent := b.open("10.0.0.1")
		plugin, far := b.open("10.0.0.1")
		time.Sleep(acceptWithin - time.Second)
		if plugin.accept("node-1"); isClosed(silent) {
			t.Error("closed early")
		}
		time.Sleep(2 * time.Second)
		if !isClosed(silent) {
			t.Error("a connection without an accepted call is still open")
		}
		time.Sleep(time.Hour)
		if isClosed(far) {
			t.Error("an accepted connection is closed")
		}
	})
}

// An address with many connections loses its own. Neither another address nor an
// accepted connection from the same address loses one.
func TestStrangersOfOneAddressAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		_, other := b.open("10.0.0.2")
		plugin, accepted := b.open("10.0.0.1")
		plugin.accept("node-1")
		calling, far := b.open("10.0.0.1")
		leave, err := calling.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
		_, oldest := b.open("10.0.0.1")
		for range 10_000 {
			b.open("10.0.0.1")
		}
		if strangers, _ := b.sizes(); strangers != maxStrangersOfAddress+1 || !isClosed(oldest) {
			t.Errorf("%d strangers, the oldest is closed: %v", strangers, isClosed(oldest))
		}
		if isClosed(other) || isClosed(accepted) || isClosed(far) {
			t.Error("the connection of another address, of a node plugin, or with a call is closed")
		}
	})
}

// With more connections than the bound, from many addresses, those with one lose it
// last, and the number stays bounded.
func TestStrangersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		_, only := b.open("10.0.0.1")
		for n := range 20 * maxStrangers {
			b.open(fmt.Sprintf("10.1.0.%d", n%100))
		}
		if strangers, _ := b.sizes(); strangers != maxStrangers || isClosed(only) {
			t.Errorf("%d strangers; the only one of its address is closed: %v", strangers, isClosed(only))
		}
	})
}

// A host with a whole /64 of IPv6 addresses has the bounds of one address.
func TestIPv6IsBoundedByNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		for n := range 100 {
			b.open(fmt.Sprintf("2001:db8::%x:%x", n, n))
		}
		b.open("2001:db8:0:1::1")
		if strangers, _ := b.sizes(); strangers != maxStrangersOfAddress+1 {
			t.Errorf("%d strangers", strangers)
		}
	})
}

// A node has few connections: its longest unused is closed, and no other node's.
func TestConnectionsOfANodeAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		honest, far := b.open("10.0.0.1")
		honest.accept("node-1")
		var first net.Conn
		for n := range 1000 {
			c, far := b.open("10.0.0.2")
			if c.accept("node-2"); n == 0 {
				first = far
			}
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		if _, accepted := b.sizes(); accepted != maxConnectionsOfNode+1 || !isClosed(first) || isClosed(far) {
			t.Errorf("%d accepted; the first is closed: %v; the other node's is closed: %v", accepted, isClosed(first), isClosed(far))
		}
	})
}

// All accepted connections are bounded. The one that was unused for the longest time is
// closed.
func TestAcceptedConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		used, far := b.open("10.0.0.1")
		used.accept("node")
		for n := range maxConnections + 10 {
			c, _ := b.open("10.0.0.2")
			c.accept(fmt.Sprint("node-", n))
			time.Sleep(time.Millisecond)
			used.accept("node")
		}
		if _, accepted := b.sizes(); accepted != maxConnections || isClosed(far) {
			t.Errorf("%d accepted; the used one is closed: %v", accepted, isClosed(far))
		}
	})
}

// A connection may send what its calls need, and is closed if it sends more.
func TestBytesOfAConnectionAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		flood := func(c *connection, far net.Conn, most int) (sent int) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			for piece := make([]byte, 1024); sent <= most; sent += len(piece) {
				if _, err := far.Write(piece); err != nil {
					break
				}
			}
			return sent
		}
		stranger, far := b.open("10.0.0.1")
		if sent := flood(stranger, far, 10*firstAllowance); sent > firstAllowance+1024 {
			t.Errorf("a stranger sent %d bytes", sent)
		}
		plugin, far := b.open("10.0.0.1")
		for range 10 {
			plugin.accept("node-1")
		}
		if sent := flood(plugin, far, 9*callAllowance); sent < 9*callAllowance {
			t.Errorf("a node plugin with ten calls was closed after %d bytes", sent)
		}
		if sent := flood(plugin, far, 100*callAllowance); sent > 2*callAllowance+firstAllowance {
			t.Errorf("it sent %d bytes more than its calls", sent)
		}
	})
}

// New connections of an address are limited, before their TLS handshake. An address that
// a node plugin has called from may open more, so that nodes behind one address can all
// connect again, also while strangers use up the limit of all strangers.
func TestNewConnectionsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		c := newConnections(b.offered, b.closed)
		c.known[netip.MustParsePrefix("10.0.0.2/32")] = time.Now()
		count := func(address string) (allowed int) {
			for range 5000 {
				if c.allow(netip.PrefixFrom(netip.MustParseAddr(address), 32)) {
					allowed++
				}
			}
			return allowed
		}
		if allowed := count("10.0.0.1"); allowed != strangersRate.Burst {
			t.Errorf("a stranger opens %d connections at once", allowed)
		}
		all := 0
		for n := range 200 {
			all += count(fmt.Sprintf("10.1.0.%d", n))
		}
		if all != allStrangersRate.Burst-strangersRate.Burst {
			t.Errorf("200 strangers open %d connections at once", all)
		}
		if allowed := count("10.0.0.2"); allowed != knownRate.Burst {
			t.Errorf("a known address opens %d connections at once", allowed)
		}
		time.Sleep(knownFor)
		if c.isKnown(netip.MustParsePrefix("10.0.0.2/32")) {
			t.Error("an address is known for ever")
		}
	})
}

// The addresses that are kept as known are bounded.
func TestKnownAddressesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		for n := range maxKnown + 100 {
			c, _ := b.open(fmt.Sprintf("10.%d.%d.1", n/250, n%250))
			c.accept("node-1")
			c.Close()
		}
		if len(b.known) != maxKnown {
			t.Errorf("%d are known", len(b.known))
		}
		time.Sleep(knownFor)
		c, _ := b.open("10.250.0.1")
		if c.accept("node-1"); len(b.known) != 1 {
			t.Errorf("%d are known, one of them for less than %s", len(b.known), knownFor)
		}
	})
}

// A stranger's calls are identified one after the other. Once one is accepted, the others
// go on at once.
func TestCallsOfAStrangerTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		c, _ := b.open("10.0.0.1")
		first, err := c.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		entered := make(chan func(), 10)
		for range cap(entered) {
			go func() {
				leave, err := c.enter(t.Context())
				if err != nil {
					t.Error(err)
				}
				entered <- leave
			}()
		}
		synctest.Wait()
		if len(entered) > 0 {
			t.Fatal("a second call is identified at the same time")
		}
		c.accept("node-1")
		first()
		synctest.Wait()
		if len(entered) != cap(entered) {
			t.Errorf("%d of %d calls go on", len(entered), cap(entered))
		}
		for range len(entered) {
			(<-entered)()
		}
		if b.counts.calls != 0 || len(b.calls) != 0 {
			t.Errorf("%d calls are left", b.counts.calls)
		}
	})
}

// Calls of strangers that wait are bounded: a connection with too many is closed.
func TestWaitingCallsOfStrangersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		other, otherFar := b.open("10.0.0.2")
		c, far := b.open("10.0.0.1")
		for range 2 * maxCallsOfAddress {
			go func() {
				if leave, err := c.enter(t.Context()); err == nil {
					t.Cleanup(leave)
				}
			}()
		}
		synctest.Wait()
		leave, err := other.enter(t.Context())
		defer leave()
		if err != nil || isClosed(otherFar) || !isClosed(far) {
			t.Errorf("another address: %v; closed: %v; the address with too many: %v", err, isClosed(otherFar), isClosed(far))
		}
	})
}

// A connection whose callers are all rejected gets no new calls, and is then closed.
func TestConnectionOfRejectedCallersIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		c, far := b.open("10.0.0.1")
		for n := 1; n <= 2*maxStrikes; n++ {
			if isClosed(far) {
				t.Fatalf("closed after %d rejections", n-1)
			}
			if last := c.strike(); last != (n >= maxStrikes) {
				t.Errorf("rejection %d: no new calls: %v", n, last)
			}
		}
		if !isClosed(far) {
			t.Error("not closed")
		}
	})
}

// All strangers of an address together are read slowly, and another address is not.
func TestStrangersAreReadSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBounded(t)
		send := func(address string, n int) time.Duration {
			begin := time.Now()
			for n > 0 {
				c, far := b.open(address)
				var reading sync.WaitGroup
				reading.Go(func() { _, _ = io.Copy(io.Discard, c) })
				for sent := 0; sent < 64<<10; sent += 1024 {
					if _, err := far.Write(make([]byte, 1024)); err != nil {
						t.Fatal(err)
					}
				}
				n -= 64 << 10
				c.Close()
				reading.Wait()
			}
			return time.Since(begin)
		}
		if took := send("10.0.0.1", 2560<<10); took < 7*time.Second {
			t.Errorf("2560 KiB were read in %s", took)
		}
		if took := send("10.0.0.2", 64<<10); took > time.Millisecond {
			t.Errorf("64 KiB of another address took %s", took)
		}
	})
}
