// Command app is a service that uses mutual TLS as a server and as a client. It reloads
// its certificate files while it runs. It uses only the standard library: copy the parts
// that your service needs.
//
// TLS_CERT, TLS_KEY and TLS_CA name the files. The service serves /hello and /health on
// :8443, and /healthz for probes in plain HTTP on :8080. Once a second, it calls each of
// the comma-separated URLs in PEERS.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	id := &identity{certificate: os.Getenv("TLS_CERT"), key: os.Getenv("TLS_KEY"), roots: os.Getenv("TLS_CA")}
	if _, err := id.load(); err != nil {
		return fmt.Errorf("TLS_CERT, TLS_KEY and TLS_CA must name the files: %w", err)
	}
	peers, err := parsePeers(os.Getenv("PEERS"))
	if err != nil {
		return err
	}
	for _, peer := range peers {
		go callForEver(id, peer)
	}
	probes := http.NewServeMux()
	probes.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	failed := make(chan error)
	go func() { failed <- http.ListenAndServe(":8080", probes) }()

	service := http.NewServeMux()
	service.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	service.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		// The handshake has verified the client's certificate.
		fmt.Fprintf(w, "hello %s\n", strings.Join(names(r.TLS.PeerCertificates[0]), " "))
	})
	server := &http.Server{Addr: ":8443", Handler: service, TLSConfig: serverConfig(id), ReadHeaderTimeout: 5 * time.Second}
	go func() { failed <- server.ListenAndServeTLS("", "") }()
	log.Print("serving on :8443")
	return <-failed
}

func parsePeers(list string) (peers []string, err error) {
	for peer := range strings.SplitSeq(list, ",") {
		if peer == "" {
			continue
		}
		if u, err := url.Parse(peer); err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("PEERS: %q is not like https://b.example.svc:8443/hello", peer)
		}
		peers = append(peers, peer)
	}
	return peers, nil
}

// identity is a service's current certificate, key and roots.
type identity struct {
	certificate, key, roots string // paths

	mu      sync.Mutex
	version string
	loaded  *material
}

type material struct {
	certificate tls.Certificate
	roots       *x509.CertPool
}

// load reads the files again if they have changed. The driver replaces all files at once
// by the link ..data beside them, so the check costs one readlink. If the files change
// while load reads them, they do not match: load then keeps the previous ones until the
// next call.
func (id *identity) load() (*material, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	version, err := os.Readlink(filepath.Join(filepath.Dir(id.certificate), "..data"))
	if err == nil && version != id.version {
		var m *material
		if m, err = id.read(); err == nil {
			log.Printf("certificate %s until %s", serial(m.certificate.Leaf), m.certificate.Leaf.NotAfter.Format(time.RFC3339))
			id.version, id.loaded = version, m
		}
	}
	if err != nil && id.loaded != nil {
		log.Printf("keeping the previous certificate: %v", err)
		return id.loaded, nil
	}
	return id.loaded, err
}

func (id *identity) read() (*material, error) {
	certificate, err := tls.LoadX509KeyPair(id.certificate, id.key)
	if err != nil {
		return nil, err
	}
	encoded, err := os.ReadFile(id.roots)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(encoded) {
		return nil, errors.New("no certificate in " + id.roots)
	}
	return &material{certificate, roots}, nil
}

// serverConfig makes a new configuration for each handshake. It rejects clients without
// a certificate from these roots.
func serverConfig(id *identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m, err := id.load()
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				Certificates: []tls.Certificate{m.certificate},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    m.roots,
			}, nil
		},
	}
}

// newClient makes a client that you can keep. Each new connection uses the current
// files. A rotation does not affect existing connections.
func newClient(id *identity) *http.Client {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		m, err := id.load()
		if err != nil {
			return nil, err
		}
		dialer := tls.Dialer{Config: &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{m.certificate},
			RootCAs:      m.roots,
		}}
		return dialer.DialContext(ctx, network, address)
	}
	// Do not copy DisableKeepAlives: it makes each call use the newest certificate, so that
	// the log shows rotations.
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialTLSContext: dial, DisableKeepAlives: true}}
}

func callForEver(id *identity, url string) {
	client := newClient(id)
	for {
		if line, err := call(client, id, url); err != nil {
			log.Printf("error: %s: %v", url, err)
		} else {
			log.Printf("ok: %s: %s", url, line)
		}
		time.Sleep(time.Second)
	}
}

func call(client *http.Client, id *identity, url string) (string, error) {
	m, err := id.load()
	if err != nil {
		return "", err
	}
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return fmt.Sprintf("%s (mine %s, theirs %s)", strings.TrimSpace(string(body)), serial(m.certificate.Leaf), serial(answer.TLS.PeerCertificates[0])), err
}

// names returns the names in the certificate: DNS names, then the SPIFFE ID.
func names(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, uri := range c.URIs {
		all = append(all, uri.String())
	}
	return all
}

// serial returns the first digits of the serial number, for a log line.
func serial(c *x509.Certificate) string { return fmt.Sprintf("%.8s", c.SerialNumber.Text(16)) }
