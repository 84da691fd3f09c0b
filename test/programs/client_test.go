package programs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/flexstack/step-csi/test/loopback"
)

// refusedByAlert matches the errors of exchange and tlsConfig's clients that a server
// refuses: see cutOff.
const refusedByAlert = "remote error: tls: |connection reset|broken pipe"

// dial connects to the server, for two minutes at most.
func (s *site) dial() (net.Conn, error) {
	connection, err := net.DialTimeout("tcp", net.JoinHostPort(loopback.IP, s.port), time.Minute)
	if err != nil {
		return nil, err
	}
	return connection, connection.SetDeadline(time.Now().Add(2 * time.Minute))
}

// tlsConfig is the configuration of a client with the volume's files, for protocols that no
// installed client speaks.
func (s *site) tlsConfig(client *volume) (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(client.file("tls.crt"), client.file("tls.key"))
	if err != nil {
		return nil, err
	}
	trusted, err := os.ReadFile(s.client.file("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(trusted) {
		return nil, errors.New("ca.crt has no certificate")
	}
	// Not Certificates: from these, crypto/tls sends only one that the server asks for, by
	// the names of its CAs.
	return &tls.Config{RootCAs: roots, ServerName: s.host, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &certificate, nil
	}}, nil
}

// exchange sends a request over a new connection, with the client's files. It is an error if
// the response does not begin with that text.
func (s *site) exchange(client *volume, request, response string) error {
	config, err := s.tlsConfig(client)
	if err != nil {
		return err
	}
	plain, err := s.dial()
	if err != nil {
		return err
	}
	defer plain.Close()
	connection := tls.Client(plain, config)
	if _, err := io.WriteString(connection, request); err != nil {
		return err
	}
	got := make([]byte, len(response))
	if n, err := io.ReadFull(connection, got); string(got) != response {
		return fmt.Errorf("%s responds %q, %v", s.section, got[:n], err)
	}
	return nil
}
