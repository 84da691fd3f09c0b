// Package embeddedca runs a real step-ca (its authority and its HTTP API) inside the
// process, on loopback, without files. Use it only for the demo and tests: its keys are
// lost when the process ends.
package embeddedca

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/authority/policy"
	"github.com/smallstep/certificates/authority/provisioner"
	"go.step.sm/crypto/jose"
	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/test/loopback"
)

// Config describes the CA. The zero value is a CA with step-ca's defaults, except for
// the minimum lifetime of one second, because tests wait for renewals.
type Config struct {
	// Name is the prefix of the common names of root and intermediate.
	Name string
	// Provisioner and Password belong to the JWK provisioner. The defaults are
	// "admin" and "password".
	Provisioner, Password string
	// Others are more provisioners.
	Others provisioner.List
	// Host is a DNS name of the CA, besides localhost and 127.0.0.1.
	Host string
	// Claims and Policy of the whole CA, which it does not show.
	Claims *provisioner.Claims
	Policy *policy.Options
	// Federated are the roots of the CAs that this CA is federated with.
	Federated []*x509.Certificate
}

// CA is a running step-ca.
type CA struct {
	config   Config
	pki      *minica.CA
	provider *provisioner.JWK
	address  string

	server    *http.Server
	authority *authority.Authority
	done      chan struct{}
	middle    atomic.Pointer[func(http.Handler) http.Handler]
	signs     atomic.Int64
}

// Start creates a root, an intermediate and a provisioner, and serves.
func Start(c Config) (*CA, error) {
	if c.Name == "" {
		c.Name = "Example"
	}
	if c.Provisioner == "" {
		c.Provisioner, c.Password = "admin", "password"
	}
	pki, err := minica.New(minica.WithName(c.Name))
	if err != nil {
		return nil, fmt.Errorf("make the CA's certificates: %w", err)
	}
	ca := &CA{config: c, pki: pki}
	if ca.provider, err = newProvisioner(c); err != nil {
		return nil, err
	}
	return ca, ca.Resume()
}

func newProvisioner(c Config) (*provisioner.JWK, error) {
	public, key, err := newKey(c.Password)
	if err != nil {
		return nil, fmt.Errorf("make the provisioner's key: %w", err)
	}
	minimum, err := provisioner.NewDuration("1s")
	if err != nil {
		return nil, err
	}
	return &provisioner.JWK{
		Type: "JWK", Name: c.Provisioner, Key: public, EncryptedKey: key,
		Claims: &provisioner.Claims{MinTLSDur: minimum},
	}, nil
}

// newKey returns a public key, and the private key encrypted like step-ca does, but with
// fewer rounds of PBKDF2: step-ca's 600000 rounds take each client a tenth of a second.
func newKey(password string) (public *jose.JSONWebKey, private string, err error) {
	key, err := jose.GenerateJWK("EC", "P-256", "ES256", "sig", "", 0)
	if err != nil {
		return nil, "", err
	}
	if key.KeyID, err = jose.Thumbprint(key); err != nil {
		return nil, "", err
	}
	plain, err := json.Marshal(key)
	if err != nil {
		return nil, "", err
	}
	encrypter, err := jose.NewEncrypter(jose.DefaultEncAlgorithm, jose.Recipient{
		Algorithm: jose.PBES2_HS256_A128KW, Key: []byte(password), PBES2Count: 1000,
	}, new(jose.EncrypterOptions).WithContentType("jwk+json"))
	if err != nil {
		return nil, "", err
	}
	encrypted, err := encrypter.Encrypt(plain)
	if err != nil {
		return nil, "", err
	}
	p := key.Public()
	private, err = encrypted.CompactSerialize()
	return &p, private, err
}

// Resume serves again, on the same address, after Stop.
func (ca *CA) Resume() error { return ca.resume((*authority.Authority).GetTLSCertificate) }

// ResumeExpired is Resume with an expired serving certificate, like that of a CA that
// could not renew it.
func (ca *CA) ResumeExpired() error {
	return ca.resume(func(*authority.Authority) (*tls.Certificate, error) {
		return ca.servingCertificate(-2*time.Hour, -time.Hour)
	})
}

// ResumeAhead is Resume with a serving certificate that becomes valid after that time, like
// that of a CA whose clock is ahead.
func (ca *CA) ResumeAhead(ahead time.Duration) error {
	return ca.resume(func(*authority.Authority) (*tls.Certificate, error) {
		return ca.servingCertificate(ahead, ahead+24*time.Hour)
	})
}

// servingCertificate returns a certificate whose validity is counted from now.
func (ca *CA) servingCertificate(notBefore, notAfter time.Duration) (*tls.Certificate, error) {
	key, err := keyutil.GenerateSigner("EC", "P-256", 0)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	leaf, err := ca.pki.Sign(&x509.Certificate{
		DNSNames: ca.names(), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, PublicKey: key.Public(),
		NotBefore: now.Add(notBefore), NotAfter: now.Add(notAfter),
	})
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.pki.Intermediate.Raw}, PrivateKey: key}, nil
}

func (ca *CA) names() []string {
	names := []string{"localhost", "127.0.0.1"}
	if ca.config.Host != "" {
		names = append(names, ca.config.Host)
	}
	return names
}

func (ca *CA) resume(serving func(*authority.Authority) (*tls.Certificate, error)) error {
	auth, err := authority.NewEmbedded(
		authority.WithConfig(&config.Config{
			DNSNames: ca.names(),
			AuthorityConfig: &config.AuthConfig{
				Provisioners: append(provisioner.List{ca.provider}, ca.config.Others...), Claims: ca.config.Claims, Policy: ca.config.Policy,
			},
		}),
		authority.WithX509RootCerts(ca.pki.Root),
		authority.WithX509FederatedCerts(ca.config.Federated...),
		authority.WithX509Signer(ca.pki.Intermediate, ca.pki.Signer),
		authority.WithQuietInit(),
	)
	if err != nil {
		return fmt.Errorf("start the authority: %w", err)
	}
	certificate, err := serving(auth)
	if err != nil {
		return fmt.Errorf("make the serving certificate: %w", err)
	}
	var listener net.Listener
	if ca.address == "" {
		listener, err = loopback.Listen(loopback.IP)
	} else {
		listener, err = loopback.ListenAgain(ca.address)
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ca.address, ca.authority, ca.done = listener.Addr().String(), auth, make(chan struct{})
	ca.server = ca.newServer(auth, certificate)
	go func() {
		defer close(ca.done)
		_ = ca.server.ServeTLS(listener, "", "")
	}()
	return nil
}

func (ca *CA) newServer(auth *authority.Authority, certificate *tls.Certificate) *http.Server {
	router := chi.NewRouter()
	api.Route(router)
	router.Route("/1.0", func(r chi.Router) { api.Route(r) })
	clientCAs := x509.NewCertPool()
	clientCAs.AddCert(ca.pki.Root)
	return &http.Server{
		Handler: ca.intercepted(router),
		TLSConfig: &tls.Config{
			MinVersion:   tls.VersionTLS12,
			Certificates: []tls.Certificate{*certificate},
			ClientAuth:   tls.VerifyClientCertIfGiven,
			ClientCAs:    clientCAs,
		},
		IdleTimeout: 15 * time.Second, // as step-ca's own server
		BaseContext: func(net.Listener) context.Context {
			return authority.NewContext(context.Background(), auth)
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

func (ca *CA) intercepted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			ca.signs.Add(1)
		}
		handler := next
		if middle := ca.middle.Load(); middle != nil {
			handler = (*middle)(next)
		}
		handler.ServeHTTP(w, r)
	})
}

// Intercept puts middle in front of the CA's own handler. Nil removes it.
func (ca *CA) Intercept(middle func(http.Handler) http.Handler) {
	if middle == nil {
		ca.middle.Store(nil)
		return
	}
	ca.middle.Store(&middle)
}

// Signs returns the number of requests to sign so far, including refused ones.
func (ca *CA) Signs() int64 { return ca.signs.Load() }

// Stop closes the CA and all its connections. Resume starts it again.
func (ca *CA) Stop() {
	_ = ca.server.Close()
	<-ca.done
	_ = ca.authority.Shutdown()
}

// ReplaceProvisioner gives the provisioner a new key with this password, as removing
// and adding the provisioner does.
func (ca *CA) ReplaceProvisioner(password string) error {
	ca.config.Password = password
	provider, err := newProvisioner(ca.config)
	if err != nil {
		return err
	}
	ca.provider = provider
	ca.Stop()
	return ca.Resume()
}

// SetOthers replaces the other provisioners, and restarts.
func (ca *CA) SetOthers(others ...provisioner.Interface) error {
	ca.config.Others = others
	ca.Stop()
	return ca.Resume()
}

// SetFederated replaces the roots of the CAs that this CA is federated with, and restarts.
func (ca *CA) SetFederated(roots ...*x509.Certificate) error {
	ca.config.Federated = roots
	ca.Stop()
	return ca.Resume()
}

// DisableRenewal sets the provisioner's claim disableRenewal, and loads it as step-ca
// does: with a restart.
func (ca *CA) DisableRenewal(disable bool) error {
	return ca.Claim(func(claims *provisioner.Claims) { claims.DisableRenewal = &disable })
}

// Claim changes the provisioner's claims, and restarts.
func (ca *CA) Claim(change func(*provisioner.Claims)) error {
	claims := *ca.provider.Claims
	change(&claims)
	ca.provider.Claims = &claims
	ca.Stop()
	return ca.Resume()
}

// Change changes the provisioner, such as its template or its policy, and restarts.
func (ca *CA) Change(change func(*provisioner.JWK)) error {
	change(ca.provider)
	ca.Stop()
	return ca.Resume()
}

// Address is the host:port that the CA listens on.
func (ca *CA) Address() string { return ca.address }

// URL of the CA.
func (ca *CA) URL() string { return "https://" + ca.address }

// Provisioner returns the name and the password of the JWK provisioner.
func (ca *CA) Provisioner() (name, password string) {
	return ca.config.Provisioner, ca.config.Password
}

// Root is the CA's root certificate.
func (ca *CA) Root() *x509.Certificate { return ca.pki.Root }

// RootPEM is the CA's root certificate in PEM.
func (ca *CA) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.pki.Root.Raw})
}

// Fingerprint is the SHA-256 of the root in hexadecimal, as
// `step certificate fingerprint` prints it.
func (ca *CA) Fingerprint() string {
	sum := sha256.Sum256(ca.pki.Root.Raw)
	return hex.EncodeToString(sum[:])
}
