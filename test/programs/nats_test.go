package programs

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

func TestNATS(t *testing.T) {
	t.Parallel()
	page := documented(t, "NATS")
	server{
		section:      "NATS",
		as:           account{uid: 1000, fsGroup: 1000},
		volume:       page.attributes(0),
		clientVolume: map[string]string{"service-names": "client"},
		start: func(s *site) {
			path := filepath.Join(s.directory, "nats.conf")
			write(t, s.as, path, "listen: \"127.0.0.1:"+s.port+"\"\n"+page.code("text", 0, s.tls.path))
			s.run(shell(page.code("sh", 0, s.tls.path, "/etc/nats/nats.conf", path))...)
		},
		shows: func(s *site, client *volume) (*x509.Certificate, error) {
			connection, _, err := s.dialNATS(client)
			if err != nil {
				return nil, err
			}
			defer connection.Close()
			return connection.ConnectionState().PeerCertificates[0], nil
		},
		use: func(s *site, client *volume) error {
			connection, responses, err := s.dialNATS(client)
			if err != nil {
				return err
			}
			defer connection.Close()
			if _, err := connection.Write([]byte("CONNECT {\"verbose\": false}\r\nPING\r\n")); err != nil {
				return err
			}
			if line, err := responses.ReadString('\n'); line != "PONG\r\n" {
				return fmt.Errorf("nats-server responds %q, %v", line, err)
			}
			return nil
		},
		refusal:      refusedByAlert,
		followsRoots: true,
	}.test(t)
}

// dialNATS begins a connection with the client's files. nats-server changes to TLS after
// its first line: https://docs.nats.io/reference/reference-protocols/nats-protocol
func (s *site) dialNATS(client *volume) (*tls.Conn, *bufio.Reader, error) {
	config, err := s.tlsConfig(client)
	if err != nil {
		return nil, nil, err
	}
	plain, err := s.dial()
	if err != nil {
		return nil, nil, err
	}
	// It is the only line that the server sends before the handshake.
	first, err := bufio.NewReader(plain).ReadString('\n')
	if err != nil || !strings.HasPrefix(first, "INFO ") {
		plain.Close()
		return nil, nil, fmt.Errorf("nats-server's first line is %q, %v", first, err)
	}
	connection := tls.Client(plain, config)
	if err := connection.Handshake(); err != nil {
		plain.Close()
		return nil, nil, err
	}
	return connection, bufio.NewReader(connection), nil
}
