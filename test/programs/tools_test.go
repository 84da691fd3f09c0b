package programs

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/node"
)

// tool is a pair of command-line programs, a server and a client. The server reads its
// files once, so it is restarted after a renewal.
type tool struct {
	section string // of docs/programs.md, whose first two blocks of sh run the server and the client
	send    string // what the client sends
	answer  string // a part of what the server answers
	refusal string
}

func (of tool) test(t *testing.T) {
	t.Parallel()
	page := documented(t, of.section)
	as := account{uid: 10001, fsGroup: 10001}
	server{
		section: of.section,
		as:      as, volume: page.attributes(0),
		clientAs: as, clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			s.run("sh", "-c", "exec "+strings.ReplaceAll(page.code("sh", 0, s.tls.path), "8443", s.port))
		},
		reload: func(s *site) {
			node.Must(s.t, s.process.Process.Signal(syscall.SIGTERM))
			select {
			case <-s.process.ended:
			case <-time.After(time.Minute):
				s.t.Fatalf("%s does not end", s.section)
			}
			s.start(s)
			s.waitListening()
		},
		use: func(s *site, client *volume) error {
			command := strings.ReplaceAll(page.code("sh", 1, client.path), "8443", s.port)
			command = strings.ReplaceAll(command, client.file("ca.crt"), s.client.file("ca.crt"))
			name := s.tls.host()
			if err := of.ask(s, command); err != nil {
				return err
			}
			if err := of.ask(s, strings.ReplaceAll(command, "hostname "+name, "hostname other."+name)); err == nil {
				return errors.New("the client accepts a server with another name")
			}
			return nil
		},
		refusal:      of.refusal,
		followsRoots: true,
	}.test(t)
}

// ask runs the client until it prints the answer, or until it ends without.
func (of tool) ask(s *site, client string) error {
	s.t.Helper()
	c := command(s.t, s.clientAs, s.clientDirectory, "sh", "-c", "exec "+client)
	var out node.Log
	c.Stdout, c.Stderr = &out, &out
	stdin, err := c.StdinPipe()
	node.Must(s.t, err)
	node.Must(s.t, c.Start())
	defer c.Process.Kill()
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	_, _ = io.WriteString(stdin, of.send) // the client may have ended
	node.Eventually(s.t, time.Minute, "the client ends or prints the answer", func() bool { return len(ended) > 0 || out.Has(of.answer) })
	stdin.Close()
	if err := <-ended; !out.Has(of.answer) {
		return fmt.Errorf("%s: %w\n%s", client, err, &out)
	}
	return nil
}

func TestOpenSSL(t *testing.T) {
	tool{
		section: "OpenSSL", send: "GET / HTTP/1.0\r\n\r\n", answer: "HTTP/1.0 200",
		refusal: "alert unknown ca|" + cutOff,
	}.test(t)
}

func TestGnuTLS(t *testing.T) {
	tool{
		section: "GnuTLS", send: "hello\n", answer: "hello",
		refusal: "Access was denied|terminated the connection|" + cutOff,
	}.test(t)
}
