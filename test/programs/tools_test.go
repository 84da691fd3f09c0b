package programs

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

// tool is a command-line client. Its server is openssl s_server, which reads its files
// once, so it is restarted after a renewal.
type tool struct {
	section string // of docs/programs.md
	command int    // the number of the section's block of sh that runs the client
	refusal string
}

// A client asks openssl s_server -www for its page.
const request, answer = "GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200"

func (of tool) test(t *testing.T) {
	t.Parallel()
	openssl, page := documented(t, "OpenSSL"), documented(t, of.section)
	as := account{uid: 10001, fsGroup: 10001}
	server{
		section: of.section,
		as:      as, volume: page.attributes(0),
		clientAs: as, clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			s.run("sh", "-c", "exec "+openssl.code("sh", 0, s.tls.path, "-accept 8443", "-accept "+loopback.IP+":"+s.port))
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
			ask := func(name string) error {
				return s.ask(page.code("sh", of.command, client.path, "8443", s.port,
					"/etc/tls/ca.crt", s.client.file("ca.crt"), "hostname "+s.host, "hostname "+name))
			}
			if err := ask(s.host); err != nil {
				return err
			}
			if err := ask("other." + s.host); err == nil {
				return errors.New("the client accepts a server with another name")
			}
			return nil
		},
		refusal:      of.refusal + "|" + cutOff,
		followsRoots: true,
	}.test(t)
}

// ask runs the client until it prints the answer, or until it ends without.
func (s *site) ask(client string) error {
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
	_, _ = io.WriteString(stdin, request) // the client may have ended
	node.Eventually(s.t, time.Minute, "the client ends or prints the answer", func() bool { return len(ended) > 0 || out.Has(answer) })
	stdin.Close()
	if err := <-ended; !out.Has(answer) {
		return fmt.Errorf("%s: %w\n%s", client, err, &out)
	}
	return nil
}

func TestOpenSSL(t *testing.T) {
	tool{section: "OpenSSL", command: 1, refusal: "alert unknown ca"}.test(t)
}

func TestGnuTLS(t *testing.T) {
	tool{section: "GnuTLS", refusal: "CA is unknown|terminated the connection"}.test(t)
}
