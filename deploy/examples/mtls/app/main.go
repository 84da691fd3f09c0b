// Command app is a service that talks mutual TLS in both directions, with files
// that are replaced while it runs. Copy from it what your service needs: it is
// the standard library alone.
//
// TLS_CERT, TLS_KEY and TLS_CA name the files. It serves /hello and /health on
// :8443, and /healthz for probes in plain HTTP on :8080. It calls each URL in
// PEERS, separated by commas, once a second.
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
		// There is a verified certificate: the handshake has seen to that.
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

// identity is a service's certificate, key and roots, as they are in the files
// now.
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

// load reads the files again if they have changed. They change as one, by the
// link ..data beside them, so that this costs one readlink. Files that change
// while they are read do not fit each other: those from before stay until the
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
		log.Printf("the certificate stays: %v", err)
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

// serverConfig makes the configuration anew for each handshake. A client without
// a certificate of these roots gets no further.
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

// newClient makes a client that lasts: each connection is made with the files as
// they are then. Those that are there need not be closed at a rotation.
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
	// Do not copy DisableKeepAlives: it is here for each line to show a rotation.
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

// names are those that the CA has verified: DNS names, then the SPIFFE ID.
func names(c *x509.Certificate) []string {
	all := slices.Clone(c.DNSNames)
	for _, uri := range c.URIs {
		all = append(all, uri.String())
	}
	return all
}

// serial is the number's beginning, for a log line.
func serial(c *x509.Certificate) string { return fmt.Sprintf("%.8s", c.SerialNumber.Text(16)) }
