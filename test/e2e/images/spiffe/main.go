// Command spiffe is a service that authenticates its peers only by SPIFFE ID. It uses
// go-spiffe with the files of a volume at /etc/tls.
//
// It serves on :8443, and calls the address PEER once a second. As client and as peer,
// it accepts only the SPIFFE ID in PEER_ID.
package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func main() {
	log.Fatal(run())
}

func run() error {
	peer, err := spiffeid.FromString(os.Getenv("PEER_ID"))
	if err != nil {
		return fmt.Errorf("PEER_ID: %w", err)
	}
	own, only := volume("/etc/tls"), tlsconfig.AuthorizeID(peer)
	// Without keep-alive, each call makes a handshake.
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: tlsconfig.MTLSClientConfig(own, own, only), DisableKeepAlives: true,
	}}
	go callForEver(client, "https://"+os.Getenv("PEER"))
	server := &http.Server{Addr: ":8443", Handler: http.HandlerFunc(hello),
		TLSConfig: tlsconfig.MTLSServerConfig(own, own, only), ReadHeaderTimeout: 5 * time.Second}
	return server.ListenAndServeTLS("", "")
}

// volume is the directory of a volume. The service reads it for each handshake, and so
// always uses the newest certificate.
type volume string

// GetX509SVID implements x509svid.Source. It retries once, because a rotation may
// happen between reading the certificate and reading the key.
func (v volume) GetX509SVID() (svid *x509svid.SVID, err error) {
	for range 2 {
		if svid, err = x509svid.Load(string(v)+"/tls.crt", string(v)+"/tls.key"); err == nil {
			return svid, nil
		}
	}
	return nil, err
}

// GetX509BundleForTrustDomain implements x509bundle.Source. The volume has the roots
// of its own trust domain.
func (v volume) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	svid, err := v.GetX509SVID()
	if err != nil {
		return nil, err
	}
	own, err := x509bundle.Load(svid.ID.TrustDomain(), string(v)+"/ca.crt")
	if err != nil {
		return nil, err
	}
	return own.GetX509BundleForTrustDomain(domain)
}

func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, "hello", name(r.TLS.PeerCertificates[0]))
}

func callForEver(client *http.Client, url string) {
	for {
		if line, err := call(client, url); err != nil {
			log.Printf("error: %v", err)
		} else {
			log.Printf("ok: %s", line)
		}
		time.Sleep(time.Second)
	}
}

func call(client *http.Client, url string) (string, error) {
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return fmt.Sprintf("%s from %s", strings.TrimSpace(string(body)), name(answer.TLS.PeerCertificates[0])), err
}

// name returns the SPIFFE ID, which the handshake has verified, and the first digits of
// the serial number.
func name(c *x509.Certificate) string {
	return fmt.Sprintf("%s %.8s", c.URIs[0], c.SerialNumber.Text(16))
}
