package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/issuer"
)

// load reads all files of a volume from one set, as all programs should.
func load(path string) (*tls.Certificate, *x509.CertPool, error) {
	set, err := filepath.EvalSymlinks(filepath.Join(path, "..data"))
	if err != nil {
		return nil, nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(set, "tls.crt"), filepath.Join(set, "tls.key"))
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(filepath.Join(set, "ca.crt"))
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, nil, errors.New("no certificate in ca.crt")
	}
	return &pair, roots, nil
}

// serial returns the serial number of the certificate in the volume.
func serial(path string) string {
	pair, _, err := load(path)
	if err != nil {
		return err.Error()
	}
	return pair.Leaf.SerialNumber.String()
}

// peer is an mTLS server that loads the files of a volume for each connection.
type peer struct {
	path     string
	server   *http.Server
	listener net.Listener
	done     chan struct{}

	mu         sync.Mutex
	own, peers map[string]bool // serial numbers of all certificates so far
}

func serve(path string) (*peer, error) {
	p := &peer{path: path, done: make(chan struct{}), own: map[string]bool{}, peers: map[string]bool{}}
	var err error
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	p.server = &http.Server{
		Handler:   p,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: p.config},
		ErrorLog:  stdlog.New(io.Discard, "", 0),
	}
	go func() {
		defer close(p.done)
		_ = p.server.ServeTLS(p.listener, "", "")
	}()
	return p, nil
}

func (p *peer) config(*tls.ClientHelloInfo) (*tls.Config, error) {
	pair, roots, err := load(p.path)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{*pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    roots,
		NextProtos:   []string{"http/1.1"},
	}, nil
}

// ServeHTTP greets the client by its SPIFFE ID.
func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "hello, "+r.TLS.PeerCertificates[0].URIs[0].String())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.own[serial(p.path)] = true
	p.peers[r.TLS.PeerCertificates[0].SerialNumber.String()] = true
}

func (p *peer) stop() {
	_ = p.server.Close()
	<-p.done
}

// request makes one request over a new connection.
func (p *peer) request(ctx context.Context, config *tls.Config) error {
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.listener.Addr().String(), nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return err
}

// tlsClient uses the files of a volume, and accepts only a server called host.
func tlsClient(path, host string) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host}
	pair, roots, err := load(path)
	config.RootCAs = roots
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, err }
	return config
}

// foreignClient has a certificate with the same names from another CA.
func foreignClient(path, host string) (*tls.Config, error) {
	pair, _, err := load(path)
	if err != nil {
		return nil, err
	}
	foreign, err := minica.New(minica.WithName("Foreign"))
	if err != nil {
		return nil, err
	}
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		return nil, err
	}
	template := *pair.Leaf
	template.PublicKey = key.Public()
	certificate, err := foreign.Sign(&template)
	if err != nil {
		return nil, err
	}
	config := tlsClient(path, host)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{
			Certificate: [][]byte{certificate.Raw, foreign.Intermediate.Raw},
			PrivateKey:  key.Signer,
		}, nil
	}
	return config, nil
}
