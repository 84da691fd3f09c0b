package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// startEcho starts a server that echoes all data, and a proxy to it.
func startEcho(t *testing.T) *Proxy {
	t.Helper()
	before := goleak.IgnoreCurrent()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_, _ = io.Copy(connection, connection)
			}()
		}
	}()
	p, err := Start(listener.Addr().String())
	must(t, err)
	t.Cleanup(func() {
		p.Close()
		listener.Close()
		left := goleak.Find(before) // which waits for less than a second
		for deadline := time.Now().Add(time.Minute); left != nil && time.Now().Before(deadline); {
			left = goleak.Find(before)
		}
		if left != nil {
			t.Error(left)
		}
	})
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	connection, err := net.Dial("tcp", p.Address())
	must(t, err)
	t.Cleanup(func() { connection.Close() })
	return connection
}

// say sends the text and returns the answer.
func say(connection net.Conn, text string) (string, error) {
	return sayWithin(connection, text, time.Minute)
}

func sayWithin(connection net.Conn, text string, limit time.Duration) (string, error) {
	if _, err := connection.Write([]byte(text)); err != nil {
		return "", err
	}
	_ = connection.SetReadDeadline(time.Now().Add(limit))
	back := make([]byte, len(text))
	n, err := io.ReadFull(connection, back)
	return string(back[:n]), err
}

func expectBack(t *testing.T, connection net.Conn, text string) {
	t.Helper()
	if back, err := say(connection, text); back != text || err != nil {
		t.Errorf("got %q, %v", back, err)
	}
}

func TestForwardsAndCounts(t *testing.T) {
	p := startEcho(t)
	a, b := dial(t, p), dial(t, p)
	expectBack(t, a, "one")
	expectBack(t, b, "three")
	sent, answered := p.Bytes()
	if p.Connections() != 2 || sent != 8 || answered != 8 {
		t.Errorf("%d connections, %d bytes sent, %d answered", p.Connections(), sent, answered)
	}
}

func TestDelay(t *testing.T) {
	p := startEcho(t)
	c := dial(t, p)
	must(t, p.Set(Delay(150*time.Millisecond)))
	begin := time.Now()
	expectBack(t, c, "slow")
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("the round trip took %s", took)
	}
}

func TestRefuse(t *testing.T) {
	p := startEcho(t)
	c := dial(t, p)
	expectBack(t, c, "before")
	must(t, p.Set(Refuse))
	if _, err := say(c, "during"); err == nil {
		t.Error("the connection goes on")
	}
	if _, err := net.Dial("tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
	must(t, p.Set(None))
	expectBack(t, dial(t, p), "after")
}

func TestReset(t *testing.T) {
	p := startEcho(t)
	before := dial(t, p)
	expectBack(t, before, "before")
	must(t, p.Set(Reset))
	expectReset := func(err error) {
		t.Helper()
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("got %v", err)
		}
	}
	_, err := say(before, "during")
	expectReset(err)
	during, err := net.Dial("tcp", p.Address()) // may already fail with the reset
	if err == nil {
		defer during.Close()
		_, err = say(during, "during")
	}
	expectReset(err)
	must(t, p.Set(None))
	expectBack(t, dial(t, p), "after")
}

func TestResetAnswer(t *testing.T) {
	p := startEcho(t)
	c := dial(t, p)
	must(t, p.Set(ResetAnswer))
	if back, err := say(c, "during"); back != "" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %q, %v", back, err)
	}
	if _, answered := p.Bytes(); answered != int64(len("during")) {
		t.Error("the server has not received the request")
	}
}

// Dropped data stays lost, and its connection stays dead.
func TestBlackhole(t *testing.T) {
	p := startEcho(t)
	before := dial(t, p)
	expectBack(t, before, "before")
	must(t, p.Set(Blackhole))
	during := dial(t, p)
	for _, c := range []net.Conn{before, during} {
		if back, err := sayWithin(c, "during", 100*time.Millisecond); back != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %q, %v", back, err)
		}
	}
	must(t, p.Set(None))
	for _, c := range []net.Conn{before, during} {
		if back, err := sayWithin(c, "after", 100*time.Millisecond); back != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %q, %v", back, err)
		}
	}
	expectBack(t, dial(t, p), "another")
}

func TestTruncate(t *testing.T) {
	p := startEcho(t)
	before := dial(t, p)
	expectBack(t, before, "before")
	must(t, p.Set(Truncate(3)))
	for _, c := range []net.Conn{before, dial(t, p)} {
		if back, err := say(c, "during"); back != "dur" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %q, %v", back, err)
		}
	}
}

func TestAnotherTarget(t *testing.T) {
	p, other := startEcho(t), startEcho(t)
	c := dial(t, p)
	expectBack(t, c, "before")
	p.To(other.Address())
	if _, err := say(c, "during"); err == nil {
		t.Error("the connection goes on")
	}
	expectBack(t, dial(t, p), "after")
	if sent, _ := other.Bytes(); sent != int64(len("after")) {
		t.Errorf("the other server received %d bytes", sent)
	}
}

// Close ends the proxy while it delays data, and leaves no goroutines.
func TestCloseEndsEverything(t *testing.T) {
	p := startEcho(t)
	c := dial(t, p)
	must(t, p.Set(Delay(time.Hour)))
	_, err := c.Write([]byte(strings.Repeat("x", 100)))
	must(t, err)
	time.Sleep(20 * time.Millisecond)
}
