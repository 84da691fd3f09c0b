package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// patience is how long tests wait for something that takes milliseconds on a fast
// machine.
const patience = 60 * time.Second

// largeMetrics are metrics of more than a megabyte, much more than the kernel holds for
// a client that does not read them.
func largeMetrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	large := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "large", Help: "large"}, []string{"n"})
	for n := range 10_000 {
		large.WithLabelValues(fmt.Sprintf("%0100d", n)).Set(1)
	}
	registry.MustRegister(large)
	return registry
}

// startHealth serves health and metrics on loopback until the test ends.
func startHealth(t *testing.T, registry *prometheus.Registry) *health {
	t.Helper()
	h, err := newHealth("127.0.0.1:0", working{}, registry)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { h.serve(ctx); close(stopped) }()
	t.Cleanup(func() { stop(); <-stopped })
	return h
}

func (h *health) address() string { return h.listener.Addr().String() }

// client is one client, at an address of its own.
type client struct {
	t    *testing.T
	from net.IP
	to   string
	open []net.Conn
	// window limits how many bytes the client takes without reading them, if it is not 0.
	// The kernel makes it a few thousand.
	window int
}

func (h *health) client(t *testing.T, from string) *client {
	c := &client{t: t, from: net.ParseIP(from), to: h.address()}
	t.Cleanup(func() {
		for _, connection := range c.open {
			connection.Close()
		}
	})
	return c
}

func (c *client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.from}}
	if c.window > 0 {
		dialer.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			if failed := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, c.window)
			}); failed != nil {
				return failed
			}
			return err
		}
	}
	return dialer.DialContext(ctx, "tcp", c.to)
}

// connect opens a connection that stays open, sends the text, and may close its side. The
// server may close the connection at any time.
func (c *client) connect(send string, closeWrite bool) {
	c.t.Helper()
	connection, err := c.dial(c.t.Context(), "", "")
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		c.t.Error(err)
		return
	}
	c.open = append(c.open, connection)
	_, _ = io.WriteString(connection, send)
	if closeWrite {
		_ = connection.(*net.TCPConn).CloseWrite()
	}
}

// get sends a request with a new connection, as the kubelet does.
func (c *client) get(path string) (body string, err error) {
	transport := &http.Transport{DialContext: c.dial, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + c.to + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, content)
	}
	return string(content), err
}

func (c *client) expectProbes() {
	c.t.Helper()
	for _, path := range []string{"/livez", "/readyz"} {
		if body, err := c.get(path); err != nil || body != "ok\n" {
			c.t.Errorf("%s: %q, %v", path, body, err)
		}
	}
}

const (
	nothing   = ""
	halfSent  = "GET /livez HTTP/1.1\r\nHost: x\r\nX: "
	keptAlive = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
	unread    = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
)

// Thousands of connections of a few dozen addresses do not keep the kubelet's probes
// and Prometheus from an answer, and the process keeps few of them.
func TestProbesAmongThousandsOfConnections(t *testing.T) {
	for name, send := range map[string]string{"idle": nothing, "half-sent": halfSent, "kept alive": keptAlive, "unread": unread} {
		t.Run(name, func(t *testing.T) {
			h := startHealth(t, largeMetrics())
			kubelet, server := h.client(t, "127.0.0.1"), h.client(t, "127.0.0.2")
			before := runtime.NumGoroutine()
			most := 0
			var attack sync.WaitGroup
			for group := range 4 {
				var attackers []*client
				for i := range 10 {
					attackers = append(attackers, h.client(t, fmt.Sprintf("127.0.%d.%d", 1+group, 1+i)))
				}
				attack.Go(func() {
					for range 75 {
						for _, a := range attackers {
							a.connect(send, false)
						}
					}
				})
			}
			ended := make(chan struct{})
			go func() { attack.Wait(); close(ended) }()
			for attacking := true; attacking; {
				select {
				case <-ended:
					attacking = false
				default:
				}
				kubelet.expectProbes()
				most = max(most, runtime.NumGoroutine()-before)
			}
			kubelet.expectProbes()
			if _, err := server.get("/metrics"); err != nil {
				t.Errorf("Prometheus gets no answer: %v", err)
			}
			// Two goroutines for each connection, and those of this test.
			if most > 3*mostConnections {
				t.Errorf("%d goroutines", most)
			}
			if n := h.sockets(t, ""); n > mostConnections {
				t.Errorf("%d sockets", n)
			}
		})
	}
}

// A client at the kubelet's own address, such as a pod in the node's network, has as many
// connections as it can.
func TestProbesFromACrowdedAddress(t *testing.T) {
	for name, send := range map[string]string{"idle": nothing, "half-sent": halfSent, "unread": unread} {
		t.Run(name, func(t *testing.T) {
			h := startHealth(t, largeMetrics())
			kubelet := h.client(t, "127.0.0.1")
			for range 5 {
				for range 2 * mostOfAddress {
					kubelet.connect(send, false)
				}
				kubelet.expectProbes()
			}
			if n := h.sockets(t, ""); n > mostOfAddress {
				t.Errorf("%d sockets", n)
			}
		})
	}
}

// smallMetrics are metrics that the kernel can hold for a client that does not read them.
func smallMetrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	small := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "small", Help: "small"}, []string{"n"})
	for n := range 80 {
		small.WithLabelValues(fmt.Sprintf("%0100d", n)).Set(1)
	}
	registry.MustRegister(small)
	return registry
}

// A client asks for the metrics, does not read them, and closes its side, again and
// again. The server is done with each request, but the kernel does not keep the answers.
func TestUnreadAnswersAreNotKept(t *testing.T) {
	h := startHealth(t, smallMetrics())
	for i := range 4 {
		attacker := h.client(t, fmt.Sprintf("127.0.1.%d", 1+i))
		attacker.window = 1
		for range mostConnections {
			attacker.connect(unread, true)
		}
	}
	kubelet := h.client(t, "127.0.0.1")
	kubelet.expectProbes()
	if n := h.sockets(t, ""); n > mostConnections {
		t.Errorf("%d sockets", n)
	}
	if h.listener.countEvicted() == 0 {
		t.Error("no connection was counted as evicted")
	}
}

// A client that asks to close the connection gets all of the answer, also if it reads the
// end after the server has closed the connection.
func TestAnswerAfterClose(t *testing.T) {
	h := startHealth(t, smallMetrics())
	c := h.client(t, "127.0.0.1")
	c.window = 1
	c.connect("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false)
	const established = "01"
	for deadline := time.Now().Add(patience); h.sockets(t, established) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server does not close the connection")
		}
	}
	if body, err := io.ReadAll(c.open[0]); err != nil || strings.Count(string(body), "\nsmall{") != 80 {
		t.Errorf("%d bytes, %v", len(body), err)
	}
}

// sockets returns the number of the server's sockets in the kernel, which also has those
// that no process has open any more. If a state of tcp_states.h is given, only those in
// this state count.
func (h *health) sockets(t *testing.T, state string) (count int) {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprintf(":%04X", h.listener.Addr().(*net.TCPAddr).Port)
	const timeWait, listening = "06", "0A" // a socket in TIME_WAIT has no buffers
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if strings.HasSuffix(fields[1], port) && fields[3] != timeWait && fields[3] != listening && (state == "" || fields[3] == state) {
			count++
		}
	}
	return count
}

// A client that asks to close the connection gets all of a long answer.
func TestLongAnswerBeforeClose(t *testing.T) {
	h := startHealth(t, largeMetrics())
	body, err := h.client(t, "127.0.0.1").get("/metrics")
	if err != nil || strings.Count(body, "\nlarge{") != 10_000 {
		t.Errorf("%d bytes, %v", len(body), err)
	}
}

// A client that does not finish its request, or does not read the answer, is
// disconnected also if no other client needs the connection.
func TestSlowClientsAreDisconnected(t *testing.T) {
	t.Parallel()
	h := startHealth(t, largeMetrics())
	c := h.client(t, "127.0.0.1")
	c.connect(halfSent, false)
	c.connect(nothing, false)
	c.connect(unread, false)
	for deadline := time.Now().Add(patience); h.sockets(t, "") > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are still open", h.sockets(t, ""))
		}
	}
}

func TestLargeHeaderIsRejected(t *testing.T) {
	h := startHealth(t, prometheus.NewRegistry())
	c := h.client(t, "127.0.0.1")
	c.connect(halfSent+strings.Repeat("x", 1<<14)+"\r\n\r\n", false)
	if answer, _ := io.ReadAll(c.open[0]); !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
		t.Errorf("%.100q", answer)
	}
}

// crowd adds connections of the address, and returns those that were evicted.
func (l *connections) crowd(address string, count int) (evicted []*connection) {
	for range count {
		if victim := l.add(&connection{listener: l, from: netip.MustParseAddr(address)}); victim != nil {
			evicted = append(evicted, victim)
		}
	}
	return evicted
}

func TestWhichConnectionIsEvicted(t *testing.T) {
	const kubelet, attacker, other = "192.0.2.1", "192.0.2.2", "2001:db8::1"
	addresses := func(evicted []*connection) (all []string) {
		for _, c := range evicted {
			all = append(all, c.from.String())
		}
		return slices.Compact(all)
	}
	t.Run("one of a crowded address", func(t *testing.T) {
		l := &connections{of: map[netip.Addr]int{}}
		l.crowd(kubelet, 1)
		evicted := l.crowd(attacker, 10_000)
		if len(l.open) != 1+mostOfAddress || !slices.Equal(addresses(evicted), []string{attacker}) {
			t.Errorf("open: %d, evicted: %s", len(l.open), addresses(evicted))
		}
	})
	t.Run("one of the address with the most", func(t *testing.T) {
		l := &connections{of: map[netip.Addr]int{}}
		l.crowd(kubelet, 2)
		for i := range 20 {
			l.crowd(fmt.Sprintf("198.51.100.%d", i), 50)
		}
		l.crowd(other, 1)
		if len(l.open) != mostConnections || l.of[netip.MustParseAddr(kubelet)] != 2 || l.of[netip.MustParseAddr(other)] != 1 {
			t.Errorf("open: %d, of the kubelet: %d", len(l.open), l.of[netip.MustParseAddr(kubelet)])
		}
	})
	t.Run("the oldest", func(t *testing.T) {
		l := &connections{of: map[netip.Addr]int{}}
		l.crowd(attacker, mostOfAddress)
		oldest := l.open[0]
		if evicted := l.crowd(attacker, 1); len(evicted) != 1 || evicted[0] != oldest {
			t.Error("another connection was evicted")
		}
	})
	t.Run("the count follows", func(t *testing.T) {
		l := &connections{of: map[netip.Addr]int{}}
		for i := range 1000 {
			l.crowd(fmt.Sprintf("198.51.100.%d", i%250), 1)
		}
		for len(l.open) > 0 {
			l.remove(l.open[0])
		}
		if len(l.of) != 0 || l.countEvicted() != 1000-mostConnections {
			t.Errorf("counts left: %v, evicted: %v", l.of, l.countEvicted())
		}
	})
}
