package stepca_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smallstep/certificates/api"
	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/embeddedca"
)

// startIngress starts a reverse proxy in front of the CA that ends TLS with a certificate
// under another root, and returns its address.
func startIngress(t *testing.T, pki *minica.CA, ca *embeddedca.CA) (address string) {
	t.Helper()
	return serveIngress(t, pki, reverseProxy(ca))
}

func reverseProxy(ca *embeddedca.CA) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "https", Host: ca.Address()}) },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: trust.Pool([]*x509.Certificate{ca.Root()})}, DisableKeepAlives: true,
		},
	}
}

func serveIngress(t *testing.T, pki *minica.CA, handler http.Handler) (address string) {
	t.Helper()
	key, err := keyutil.GenerateDefaultSigner()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.Sign(&x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, PublicKey: key.Public(),
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, pki.Intermediate.Raw}, PrivateKey: key}}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func newPKI(t *testing.T, name string) *minica.CA {
	t.Helper()
	pki, err := minica.New(minica.WithName(name))
	if err != nil {
		t.Fatal(err)
	}
	return pki
}

// Behind an ingress with a certificate of its own, the server is verified by the configured
// roots, and pods get the root that the fingerprint names.
func TestServerWithACertificateOfItsOwn(t *testing.T) {
	ca, public := startCA(t), newPKI(t, "Public")
	for name, test := range map[string]struct {
		roots  []*x509.Certificate
		change func(*stepca.Config)
		says   string
	}{
		"fingerprint":            {roots: []*x509.Certificate{public.Root}},
		"bundle":                 {roots: []*x509.Certificate{public.Root}, change: func(c *stepca.Config) { c.Fingerprint, c.CABundle = "", ca.RootPEM() }},
		"without serverTLS":      {says: "set serverTLS"},
		"roots of the CA":        {roots: []*x509.Certificate{ca.Root()}, says: "serverTLS decides"},
		"roots of another":       {roots: []*x509.Certificate{newPKI(t, "Other").Root}, says: "serverTLS decides"},
		"no roots":               {roots: []*x509.Certificate{}, says: "serverTLS decides"},
		"fingerprint of another": {roots: []*x509.Certificate{public.Root}, change: func(c *stepca.Config) { c.Fingerprint = trust.Fingerprint(public.Root) }, says: "no root with the fingerprint"},
		"bundle of another":      {roots: []*x509.Certificate{public.Root}, change: func(c *stepca.Config) { c.Fingerprint, c.CABundle = "", startCA(t).RootPEM() }, says: "fingerprint or caBundleFile"},
		"another host":           {roots: []*x509.Certificate{public.Root}, change: func(c *stepca.Config) { c.URL = strings.Replace(c.URL, "127.0.0.1", "localhost", 1) }, says: "match localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			requests := atomic.Int64{}
			forward := reverseProxy(ca)
			c := configFor(ca)
			c.URL = "https://" + serveIngress(t, public, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				forward.ServeHTTP(w, r)
			}))
			if test.roots != nil {
				c.ServerRoots = trust.Pool(test.roots)
			}
			if test.change != nil {
				test.change(&c)
			}
			s := newSigner(t, c)
			got, err := newIssuer(t, s).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
			if test.says != "" {
				if err == nil || !strings.Contains(err.Error(), test.says) {
					t.Errorf("got %v, want %q", err, test.says)
				}
				// Nothing is sent over a connection that serverTLS does not verify.
				if strings.HasPrefix(test.says, "serverTLS") && requests.Load() > 0 {
					t.Errorf("%d requests", requests.Load())
				}
				if ca.Signs() > 2 { // those of the tests that succeed
					t.Errorf("%d certificates", ca.Signs())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			own := []*x509.Certificate{ca.Root()}
			if !trust.Same(got.Roots.All(), own) || !trust.Same(s.Trust().Trusted(), own) {
				t.Errorf("%d roots for pods, %d trusted", len(got.Roots.All()), len(s.Trust().Trusted()))
			}
		})
	}
}

// A publicly trusted certificate for the host is not enough to add roots: the
// fingerprint pins the CA's root.
func TestServerRootsNeverAddRoots(t *testing.T) {
	ca, public := startCA(t), newPKI(t, "Public")
	forward := reverseProxy(ca)
	answers := []api.Certificate{api.NewCertificate(ca.Root()), api.NewCertificate(public.Root)}
	c := configFor(ca)
	c.ServerRoots = trust.Pool([]*x509.Certificate{public.Root})
	c.Federation = true
	c.URL = "https://" + serveIngress(t, public, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/roots") || strings.HasSuffix(r.URL.Path, "/federation") {
			answer(w, map[string]any{"crts": answers})
			return
		}
		forward.ServeHTTP(w, r)
	}))
	s := newSigner(t, c)
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		roots, err := s.RefreshRoots(t.Context())
		own := []*x509.Certificate{ca.Root()}
		if err != nil || !trust.Same(roots.All(), own) || !trust.Same(s.Trust().Trusted(), own) || len(s.Trust().State().Roots) > 0 {
			t.Errorf("%d roots for pods, %d trusted: %v", len(roots.All()), len(s.Trust().Trusted()), err)
		}
	}
	answers = answers[1:]
	if _, err := s.RefreshRoots(t.Context()); issuer.OutcomeOf(err) != issuer.InvalidAnswer {
		t.Errorf("roots without the pinned one: %v", err)
	}
}
