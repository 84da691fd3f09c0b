package stepca_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/authority/provisioner"
	"go.uber.org/goleak"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/embeddedca"
)

func startCA(t *testing.T) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Stop)
	return ca
}

func configFor(ca *embeddedca.CA) stepca.Config {
	name, _ := ca.Provisioner()
	return stepca.Config{
		URL:         ca.URL(),
		Fingerprint: ca.Fingerprint(),
		Provisioner: name,
		Password: func() ([]byte, error) {
			_, password := ca.Provisioner()
			return []byte(password + "\n"), nil
		},
		Timeout: 10 * time.Second,
	}
}

func newSigner(t *testing.T, c stepca.Config) *stepca.Signer {
	t.Helper()
	s, err := stepca.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func allowAll(context.Context, issuer.Pod, issuer.Request) error { return nil }

func newIssuer(t *testing.T, s issuer.Signer) *issuer.Issuer {
	t.Helper()
	i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func request() issuer.Request {
	return issuer.Request{
		CommonName: names.Must(names.ParseCommonName("web.shop")),
		DNSNames:   names.Must(names.ParseAll(names.ParseDNSName, "web.shop", "web.shop.svc", "*.web.shop.svc.cluster.local")),
		URIs:       names.Must(names.ParseAll(names.ParseURI, "spiffe://cluster.local/ns/shop/sa/web")),
		Duration:   time.Hour,
		KeyType:    issuer.ECDSAP256,
	}
}

// signingRequest is for tests that call the signer without the issuer.
func signingRequest(t *testing.T) issuer.SigningRequest {
	t.Helper()
	req := request()
	key, err := req.KeyType.Generate()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuer.NewCSR(req, key)
	if err != nil {
		t.Fatal(err)
	}
	return issuer.SigningRequest{Request: req, CSR: csr}
}

func TestIssueWithEveryKeyType(t *testing.T) {
	ca := startCA(t)
	i := newIssuer(t, newSigner(t, configFor(ca)))
	for _, keyType := range issuer.KeyTypes() {
		t.Run(string(keyType), func(t *testing.T) {
			req := request()
			req.KeyType = keyType
			got, err := i.Issue(t.Context(), issuer.Applicant{}, req, issuer.PrivateKey{})
			if err != nil {
				t.Fatal(err)
			}
			if !keyType.Matches(got.Key.Signer) {
				t.Errorf("the key is a %T", got.Key.Signer)
			}
			if len(got.Chain) != 2 || len(got.Roots.Own) != 1 || !got.Roots.Own[0].Equal(ca.Root()) {
				t.Errorf("chain of %d, %d roots", len(got.Chain), len(got.Roots.Own))
			}
			if lifetime := time.Until(got.Leaf().NotAfter); lifetime > time.Hour || lifetime < 59*time.Minute {
				t.Errorf("the lifetime is %s", lifetime)
			}
		})
	}
}

func TestCABundleInsteadOfFingerprint(t *testing.T) {
	ca := startCA(t)
	c := configFor(ca)
	c.Fingerprint, c.CABundle = "", ca.RootPEM()
	if err := newSigner(t, c).Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestForeignCAIsNotTrusted(t *testing.T) {
	ca, other := startCA(t), startCA(t)
	for name, change := range map[string]func(*stepca.Config){
		"fingerprint": func(c *stepca.Config) { c.Fingerprint = other.Fingerprint() },
		"bundle":      func(c *stepca.Config) { c.Fingerprint, c.CABundle = "", other.RootPEM() },
	} {
		t.Run(name, func(t *testing.T) {
			c := configFor(ca)
			c.Shown = func(leaf *x509.Certificate) { t.Errorf("an unverified CA showed %q", leaf.DNSNames) }
			change(&c)
			err := newSigner(t, c).Connect(t.Context())
			if !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), "fingerprint") {
				t.Errorf("got %v", err)
			}
			if n := ca.Signs(); n != 0 {
				t.Errorf("the CA received %d signing requests", n)
			}
		})
	}
}

// No pod gets a name that only the CA's certificate has, not even with the first request,
// which is what connects to the CA.
func TestNamesThatTheCAShowsAreReserved(t *testing.T) {
	ca, err := embeddedca.Start(embeddedca.Config{Host: "pki.shop.svc"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Stop)
	domain := names.Must(names.ParseClusterDomain("cluster.local"))
	reserved := policy.NewReserved(domain, names.Must(names.ParseHost("127.0.0.1")))
	allow, err := policy.New(policy.Config{ClusterDomain: domain, TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")), Reserved: reserved})
	if err != nil {
		t.Fatal(err)
	}
	c := configFor(ca)
	c.Shown = reserved.Learn
	i, err := issuer.New(issuer.Config{Signer: newSigner(t, c), Policy: allow.Check})
	if err != nil {
		t.Fatal(err)
	}
	shop := issuer.Applicant{Pod: issuer.Pod{Namespace: "shop", Name: "web-0", UID: "uid", ServiceAccount: "web", Node: "node-1"}}
	for attempt, asked := range []int64{1, 1} {
		req := request()
		req.CommonName, req.DNSNames = names.Must(names.ParseCommonName("uid")), names.Must(names.ParseAll(names.ParseDNSName, "pki.shop"))
		if _, err := i.Issue(t.Context(), shop, req, issuer.PrivateKey{}); !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "pki.shop is reserved") {
			t.Errorf("attempt %d: %v", attempt, err)
		}
		if n := ca.Signs(); n != asked {
			t.Errorf("attempt %d: the CA received %d signing requests in all, want %d", attempt, n, asked)
		}
	}
	if _, err := i.Issue(t.Context(), shop, request(), issuer.PrivateKey{}); err != nil {
		t.Error(err)
	}
}

func TestWrongConfigurationIsRefused(t *testing.T) {
	ca := startCA(t)
	for name, test := range map[string]struct {
		change func(*stepca.Config)
		want   string
	}{
		"http":               {func(c *stepca.Config) { c.URL = "http://ca" }, "url"},
		"no host":            {func(c *stepca.Config) { c.URL = "https://:9000" }, "url"},
		"path":               {func(c *stepca.Config) { c.URL = "https://ca/1.0/sign" }, "url"},
		"user":               {func(c *stepca.Config) { c.URL = "https://a:b@ca" }, "url"},
		"no pins":            {func(c *stepca.Config) { c.Fingerprint = "" }, "fingerprint"},
		"both pins":          {func(c *stepca.Config) { c.CABundle = ca.RootPEM() }, "fingerprint"},
		"short fingerprint":  {func(c *stepca.Config) { c.Fingerprint = "84a0" }, "64 digits"},
		"rubbish bundle":     {func(c *stepca.Config) { c.Fingerprint, c.CABundle = "", []byte("x") }, "caBundleFile"},
		"no provisioner":     {func(c *stepca.Config) { c.Provisioner = "" }, "provisioner.name"},
		"no password source": {func(c *stepca.Config) { c.Password = nil }, "keyFile"},
		"half a certificate": {func(c *stepca.Config) { c.Certificate = c.Password }, "privateKeyFile"},
		"two types":          {func(c *stepca.Config) { c.Certificate, c.PrivateKey = c.Password, c.Password }, "neither kid nor keyFile nor passwordFile"},
	} {
		t.Run(name, func(t *testing.T) {
			c := configFor(ca)
			test.change(&c)
			if _, err := stepca.New(c); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestWrongProvisionerOrPassword(t *testing.T) {
	ca := startCA(t)
	for name, test := range map[string]struct {
		change func(*stepca.Config)
		want   string
	}{
		"provisioner": {func(c *stepca.Config) { c.Provisioner = "missing" }, `no JWK provisioner "missing"`},
		"password":    {func(c *stepca.Config) { c.Password = func() ([]byte, error) { return []byte("wrong"), nil } }, "password does not open"},
		"file":        {func(c *stepca.Config) { c.Password = func() ([]byte, error) { return nil, errors.New("no such file") } }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			c := configFor(ca)
			test.change(&c)
			err := newSigner(t, c).Connect(t.Context())
			if !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

// listing makes the CA change its list of provisioners with change.
func listing(ca *embeddedca.CA, change func(provisioners []any) []any) {
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/provisioners") {
				next.ServeHTTP(w, r)
				return
			}
			recorder := httptest.NewRecorder()
			next.ServeHTTP(recorder, r)
			var page map[string]any
			if err := json.Unmarshal(recorder.Body.Bytes(), &page); err != nil {
				panic(err)
			}
			page["provisioners"] = change(page["provisioners"].([]any))
			_ = json.NewEncoder(w).Encode(page)
		})
	})
}

// The signer skips malformed entries in the list. An entry without a key once
// crashed the plugin on every node.
func TestMalformedProvisionersAreSkipped(t *testing.T) {
	ca := startCA(t)
	malformed := []any{
		map[string]any{"type": "JWK", "name": "admin", "encryptedKey": "a.b.c.d.e"},
		map[string]any{"type": "JWK", "name": "another"},
		map[string]any{"type": "JWK", "name": "admin", "key": nil, "encryptedKey": ""},
		map[string]any{"type": "unknown", "name": "admin"},
		nil,
	}
	listing(ca, func(provisioners []any) []any { return append(slices.Clone(malformed), provisioners...) })
	if err := newSigner(t, configFor(ca)).Connect(t.Context()); err != nil {
		t.Error(err)
	}
	listing(ca, func([]any) []any { return malformed })
	if err := newSigner(t, configFor(ca)).Connect(t.Context()); !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), `no JWK provisioner "admin"`) {
		t.Errorf("a list of malformed provisioners only: %v", err)
	}
}

// The CA's list of provisioners cannot take more memory or time than the bounds allow.
func TestHostileListsOfProvisioners(t *testing.T) {
	ca := startCA(t)
	for name, test := range map[string]struct {
		page func(n int) string
		says string
	}{
		"endless pages":       {func(n int) string { return fmt.Sprintf(`{"provisioners":[],"nextCursor":"%d"}`, n) }, "more than 100 pages"},
		"cursors in a circle": {func(n int) string { return fmt.Sprintf(`{"provisioners":[],"nextCursor":"%d"}`, n%2) }, "more than 100 pages"},
		"many with the name": {func(int) string {
			entry := `{"type":"JWK","name":"admin","key":{"kty":"oct","k":"AAAA"},"encryptedKey":"a.b.c.d.e"},`
			return `{"provisioners":[` + strings.TrimSuffix(strings.Repeat(entry, 20000), ",") + `]}`
		}, "is not an encrypted JWK (JWE)"},
		"long keys": {func(int) string {
			return `{"provisioners":[{"type":"JWK","name":"admin","key":{"kty":"oct","k":"AAAA"},"encryptedKey":"` + strings.Repeat("a", 1<<20) + `"}]}`
		}, "is longer than 65536 bytes"},
		"many names": {func(int) string {
			entry := `{"type":"ACME","name":"` + strings.Repeat("é", 1000) + `"},`
			return `{"provisioners":[` + strings.TrimSuffix(strings.Repeat(entry, 1000), ",") + `]}`
		}, "and 980 more"},
		"a long page": {func(int) string { return `{"provisioners":[` + strings.Repeat(" ", 5<<20) + `]}` }, "too large"},
		"null":        {func(int) string { return `null` }, "no JWK provisioner"},
	} {
		t.Run(name, func(t *testing.T) {
			pages := 0
			ca.Intercept(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !strings.HasSuffix(r.URL.Path, "/provisioners") {
						next.ServeHTTP(w, r)
						return
					}
					pages++
					fmt.Fprint(w, test.page(pages))
				})
			})
			defer ca.Intercept(nil)
			s := newSigner(t, configFor(ca))
			for what, call := range map[string]func() error{
				"Connect":       func() error { return s.Connect(t.Context()) },
				"HolderRenewal": func() error { _, err := s.HolderRenewal(t.Context(), 0); return err },
			} {
				if err := call(); !errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), test.says) || len(err.Error()) > 4000 {
					t.Errorf("%s: %.4000v", what, err)
				}
			}
			if pages > 200 {
				t.Errorf("%d pages were requested", pages)
			}
		})
	}
}

// The CA decides about its messages, but not about the length of logs and events.
func TestLongMessageOfTheCA(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	answering(ca, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"status":403,"message":"not allowed: %s"}`, strings.Repeat("é", 1<<20))
	})
	_, err := s.Sign(t.Context(), signingRequest(t))
	if !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "not allowed: é") || len(err.Error()) > 2000 || !utf8.ValidString(err.Error()) {
		t.Errorf("an error of %d bytes: %.200v", len(err.Error()), err)
	}
}

// HolderRenewal tells what step-ca really does with a certificate of the provisioner.
func TestHolderRenewal(t *testing.T) {
	yes, no := true, false
	for name, test := range map[string]struct {
		claims  func(*provisioner.Claims)
		says    string
		renewed bool
	}{
		"no claim":         {func(*provisioner.Claims) {}, "disable-renewal=true", true},
		"the claim":        {func(c *provisioner.Claims) { c.DisableRenewal = &yes }, "", false},
		"the claim, false": {func(c *provisioner.Claims) { c.DisableRenewal = &no }, "disable-renewal=true", true},
		"the claim, without extension": {func(c *provisioner.Claims) {
			c.DisableRenewal, c.DisableSmallstepExtensions = &yes, &yes
		}, "disable-smallstep-extensions=false", true},
	} {
		t.Run(name, func(t *testing.T) {
			ca := startCA(t)
			if err := ca.Claim(test.claims); err != nil {
				t.Fatal(err)
			}
			s := newSigner(t, configFor(ca))
			allowed, err := s.HolderRenewal(t.Context(), 0)
			if err != nil || (allowed == "") != (test.says == "") || !strings.Contains(allowed, test.says) {
				t.Errorf("%q, %v", allowed, err)
			}
			credential, err := newIssuer(t, s).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
			if err != nil {
				t.Fatal(err)
			}
			if status := renew(t, ca, credential); (status == http.StatusCreated) != test.renewed {
				t.Errorf("step-ca answers a renewal with %d", status)
			}
		})
	}
}

// renew asks the CA to renew the certificate, as a thief of the key would.
func renew(t *testing.T, ca *embeddedca.CA, c *issuer.Credential) (status int) {
	t.Helper()
	pair := tls.Certificate{PrivateKey: c.Key.Signer}
	for _, certificate := range c.Chain {
		pair.Certificate = append(pair.Certificate, certificate.Raw)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Root())
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
	}}
	answer, err := client.Post(ca.URL()+"/1.0/renew", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// The claim is read again when it is too old, also after the provisioner's key was
// replaced. A key that stays is not decrypted again.
func TestHolderRenewalIsReadAgain(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	expect := func(maxAge time.Duration, want bool) {
		t.Helper()
		if allowed, err := s.HolderRenewal(t.Context(), maxAge); err != nil || (allowed != "") != want {
			t.Errorf("%q, %v", allowed, err)
		}
	}
	expect(0, true)
	if err := ca.DisableRenewal(true); err != nil {
		t.Fatal(err)
	}
	expect(time.Hour, true)
	expect(0, false)
	if err := ca.ReplaceProvisioner("another"); err != nil {
		t.Fatal(err)
	}
	expect(time.Hour, false)
	expect(0, true) // the new provisioner does not have the claim
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("Sign with the new key: %v", err)
	}
}

// A panic in a call that several callers share fails this call, and does not crash
// the process.
func TestPanicInASharedCall(t *testing.T) {
	ca := startCA(t)
	c := configFor(ca)
	password, panicked := c.Password, false
	c.Password = func() ([]byte, error) {
		if !panicked {
			panicked = true
			panic("a defect of a test")
		}
		return password()
	}
	s := newSigner(t, c)
	if err := s.Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "defect of step-csi") {
		t.Errorf("got %v", err)
	}
	if err := s.Connect(t.Context()); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

// Five signing requests use one connection, and request the roots and the
// provisioner's key once.
func TestConnectionAndKeyAreReused(t *testing.T) {
	ca := startCA(t)
	var gets atomic.Int64
	var mu sync.Mutex
	peers := map[string]bool{}
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				gets.Add(1)
			} else {
				mu.Lock()
				peers[r.RemoteAddr] = true
				mu.Unlock()
			}
			next.ServeHTTP(w, r)
		})
	})
	i := newIssuer(t, newSigner(t, configFor(ca)))
	for range 5 {
		if _, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(peers) != 1 {
		t.Errorf("the signing requests used %d connections", len(peers))
	}
	if n := gets.Load(); n != 3 { // the pinned root, all roots, the provisioners
		t.Errorf("%d requests in addition to the signing requests", n)
	}
}

func TestReplacedProvisionerKeyIsNoticed(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Fatal(err)
	}
	if err := ca.ReplaceProvisioner("another password"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("after the key was replaced: %v", err)
	}
}

// The CA restarts with another provisioner key, which also breaks the open
// connection.
func TestReplacedKeyBehindABrokenConnection(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Fatal(err)
	}
	if err := ca.ReplaceProvisioner("another password"); err != nil {
		t.Fatal(err)
	}
	s.Close() // so that only the interception below breaks a connection
	var calls atomic.Int64
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && calls.Add(1) == 1 {
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	})
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	tooLong := signingRequest(t)
	tooLong.Request.Duration = 48 * time.Hour
	// The token is bound to its CSR, so the CA rejects other names.
	otherNames := signingRequest(t)
	otherNames.Request.DNSNames = names.Must(names.ParseAll(names.ParseDNSName, "db.shop"))
	for name, test := range map[string]struct {
		req  issuer.SigningRequest
		want string
	}{
		"too long":    {tooLong, "more than the authorized maximum"},
		"other names": {otherNames, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Sign(t.Context(), test.req)
			if !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A one-time token is bound to its CSR: a thief cannot get another key signed for
// the same names.
func TestTokenIsBoundToTheCSR(t *testing.T) {
	x5c, pki := startX5C(t, nil)
	files := newPair(t, pki, nil)
	jwk := startCA(t)
	t.Run("JWK", func(t *testing.T) { stealToken(t, jwk, configFor(jwk)) })
	t.Run("X5C", func(t *testing.T) { stealToken(t, x5c, x5cConfig(x5c, &files)) })
}

func stealToken(t *testing.T, ca *embeddedca.CA, c stepca.Config) {
	s := newSigner(t, c)
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	stolen := signingRequest(t).CSR
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var body api.SignRequest
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			body.CsrPEM = api.NewCertificateRequest(stolen)
			changed, err := json.Marshal(body)
			if err != nil {
				t.Error(err)
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(changed)), int64(len(changed))
			next.ServeHTTP(w, r)
		})
	})
	if _, err := s.Sign(t.Context(), signingRequest(t)); !errors.Is(err, issuer.Denied) || !strings.Contains(err.Error(), "fingerprint") {
		t.Errorf("got %v", err)
	}
}

// A CA without a database cannot revoke, and a retry does not help.
func TestRevokeWithoutDatabase(t *testing.T) {
	s := newSigner(t, configFor(startCA(t)))
	err := s.Revoke(t.Context(), issuer.Revocation{Serial: "1234"})
	if !errors.Is(err, issuer.Unsupported) || errors.Is(err, issuer.Unavailable) || !strings.Contains(err.Error(), "db in its ca.json") {
		t.Errorf("got %v", err)
	}
}

// answering makes f answer the signing requests, instead of the CA.
func answering(ca *embeddedca.CA, f http.HandlerFunc) {
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				f(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
}

func TestBadAnswersAreUnavailability(t *testing.T) {
	ca := startCA(t)
	c := configFor(ca)
	c.Timeout = time.Second
	s := newSigner(t, c)
	// eventually succeeds, also where a call can take more than a second.
	eventually := func(when string, call func() error) {
		t.Helper()
		err := call()
		for deadline := time.Now().Add(time.Minute); err != nil && time.Now().Before(deadline); {
			err = call()
		}
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	eventually("connect", func() error { return s.Connect(t.Context()) })
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, answer := range map[string]http.HandlerFunc{
		"rubbish":      text(http.StatusCreated, "<html>"),
		"empty":        text(http.StatusCreated, "{}"),
		"null":         text(http.StatusCreated, `{"certChain":[null]}`),
		"proxy's 403":  text(http.StatusForbidden, "<html>"),
		"500":          text(http.StatusInternalServerError, `{"status":500,"message":"disk full"}`),
		"503":          text(http.StatusServiceUnavailable, ""),
		"hangs":        func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"closes":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"never-ending": func(w http.ResponseWriter, _ *http.Request) { endless(w) },
		"redirects away": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			answering(ca, answer)
			defer ca.Intercept(nil)
			start := time.Now()
			_, err := s.Sign(t.Context(), signingRequest(t))
			if !errors.Is(err, issuer.Unavailable) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("Sign took %s", d)
			}
		})
	}
	eventually("Sign after the bad answers", func() error {
		_, err := s.Sign(t.Context(), signingRequest(t))
		return err
	})
}

func endless(w http.ResponseWriter) {
	w.WriteHeader(http.StatusCreated)
	for chunk := []byte(strings.Repeat(" ", 1<<16)); ; {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// Sign retries after a broken connection, with a new token.
func TestRetryAfterBrokenConnection(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int64
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r) // the CA has now used the token
			if r.Method == http.MethodPost && calls.Add(1) == 1 {
				panic(http.ErrAbortHandler)
			}
		})
	})
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil || calls.Load() != 2 {
		t.Errorf("%d calls: %v", calls.Load(), err)
	}
}

func TestUnreachableThenBack(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	ca.Stop()
	if _, err := s.Sign(t.Context(), signingRequest(t)); !errors.Is(err, issuer.Unavailable) {
		t.Errorf("got %v", err)
	}
	if err := ca.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("Sign after the outage: %v", err)
	}
}

func TestCallersStopWaitingWithTheirContext(t *testing.T) {
	ca := startCA(t)
	ca.Intercept(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	})
	s := newSigner(t, configFor(ca))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// The signer uses the roots that the CA returns over a verified connection, whatever
// the answer to Sign contains.
func TestRootsComeFromTheCA(t *testing.T) {
	ca := startCA(t)
	roots, err := newSigner(t, configFor(ca)).Roots(t.Context())
	if err != nil || len(roots.Own) != 1 || !roots.Own[0].Equal(ca.Root()) {
		t.Errorf("%v, %v", roots, err)
	}
}

// Pods trust the roots of federated CAs if the configuration says so. The signer
// never trusts them for its connection to the CA.
func TestFederationIsOptedIn(t *testing.T) {
	other := startCA(t)
	ca, err := embeddedca.Start(embeddedca.Config{Federated: []*x509.Certificate{other.Root()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ca.Stop)
	for _, federation := range []bool{false, true} {
		c := configFor(ca)
		c.Federation = federation
		s := newSigner(t, c)
		roots, err := s.RefreshRoots(t.Context())
		if err != nil || !trust.Same(roots.Own, []*x509.Certificate{ca.Root()}) {
			t.Errorf("%v, %v", roots, err)
		}
		want := []*x509.Certificate{ca.Root()}
		if !trust.Same(s.Trust().Trusted(), want) {
			t.Error("the signer trusts a federated root for its connection to the CA")
		}
		if federation {
			want = append(want, other.Root())
		}
		if !trust.Same(roots.All(), want) {
			t.Errorf("federation %v: %d roots", federation, len(roots.All()))
		}
	}
}

// During a rotation of the root, the configuration can have both fingerprints,
// whichever root the CA uses.
func TestSeveralFingerprints(t *testing.T) {
	ca, other := startCA(t), startCA(t)
	c := configFor(ca)
	c.Fingerprint = other.Fingerprint() + "," + ca.Fingerprint()
	if err := newSigner(t, c).Connect(t.Context()); err != nil {
		t.Error(err)
	}
	c.Fingerprint = other.Fingerprint() + "," + other.Fingerprint()
	if err := newSigner(t, c).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), other.Fingerprint()) {
		t.Errorf("got %v", err)
	}
}

// The tests leave no goroutine. On a busy machine, goroutines take longer to end than goleak
// itself waits.
func TestMain(m *testing.M) {
	code := m.Run()
	for deadline := time.Now().Add(time.Minute); code == 0; {
		// step-ca's database, if built in, starts glog's daemon.
		left := goleak.Find(goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
		if left == nil {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, left)
			code = 1
		}
	}
	os.Exit(code)
}
