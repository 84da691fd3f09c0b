package stepca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/smallstep/certificates/api"
	"go.step.sm/crypto/jose"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/test/embeddedca"
)

// theft is a one-time token that an attacker intercepted together with its CSR. The
// CA has seen neither.
type theft struct {
	token string
	csr   *x509.CertificateRequest
	key   issuer.PrivateKey // the thief's
}

// steal intercepts the token and the CSR that call sends to the CA.
func steal(t *testing.T, ca *embeddedca.CA, call func() error) *theft {
	t.Helper()
	var body struct {
		CSR api.CertificateRequest `json:"csr"`
		OTT string                 `json:"ott"`
	}
	answering(ca, func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	defer ca.Intercept(nil)
	if err := call(); err == nil || body.OTT == "" {
		t.Fatalf("got a token of %d bytes, %v", len(body.OTT), err)
	}
	key, err := issuer.ECDSAP256.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return &theft{token: body.OTT, csr: body.CSR.CertificateRequest, key: key}
}

// csrFor returns a CSR with the thief's key.
func (th *theft) csrFor(t *testing.T, change func(*x509.CertificateRequest)) *x509.CertificateRequest {
	t.Helper()
	template := ownCSR()
	change(template)
	der, err := x509.CreateCertificateRequest(rand.Reader, template, th.key.Signer)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// ownCSR returns the template of a CSR with the names of request.
func ownCSR() *x509.CertificateRequest {
	r := request()
	return &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: r.CommonName.String()}, DNSNames: names.Texts(r.DNSNames), URIs: []*url.URL{r.URIs[0].URL()},
	}
}

// rewritten changes the claims of the token and keeps its signature.
func rewritten(old, new string) func(*testing.T, *theft) string {
	return func(t *testing.T, th *theft) string {
		parts := strings.Split(th.token, ".")
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil || !bytes.Contains(claims, []byte(old)) {
			t.Fatalf("%s, %v", claims, err)
		}
		parts[1] = base64.RawURLEncoding.EncodeToString(bytes.ReplaceAll(claims, []byte(old), []byte(new)))
		return strings.Join(parts, ".")
	}
}

// unsigned replaces the token's algorithm with "none".
func unsigned(_ *testing.T, th *theft) string {
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + strings.Split(th.token, ".")[1] + "."
}

// forged signs the token's claims with the thief's key, under the key ID of the
// provisioner.
func forged(t *testing.T, th *theft) string {
	t.Helper()
	parsed, err := jose.ParseSigned(th.token)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: th.key.Signer},
		new(jose.SignerOptions).WithType("JWT").WithHeader("kid", parsed.Headers[0].KeyID))
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		t.Fatal(err)
	}
	token, err := jose.Signed(signer).Claims(claims).CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// post sends a body to the CA and returns the status and the answer.
func post(t *testing.T, ca *embeddedca.CA, path string, body map[string]any) (status int, answer string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca.Root())
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	response, err := client.Post(ca.URL()+path, "application/json", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func signWith(token string, csr *x509.CertificateRequest) map[string]any {
	return map[string]any{"csr": api.NewCertificateRequest(csr), "ott": token}
}

// A stolen token is valid once, and only for the CSR that it was made for. The thief
// cannot use that certificate, because only the pod has the key.
func TestAttackWithAStolenToken(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	type body = func(*testing.T, *theft) map[string]any
	otherCSR := func(change func(*x509.CertificateRequest)) body {
		return func(t *testing.T, th *theft) map[string]any { return signWith(th.token, th.csrFor(t, change)) }
	}
	otherToken := func(change func(*testing.T, *theft) string) body {
		return func(t *testing.T, th *theft) map[string]any { return signWith(change(t, th), th.csr) }
	}
	for _, test := range []struct {
		name, path string
		body       body
		status     int
		message    string
	}{
		{"for another key", "/1.0/sign", otherCSR(func(*x509.CertificateRequest) {}), http.StatusForbidden, "fingerprint"},
		{"for another name", "/1.0/sign", otherCSR(func(r *x509.CertificateRequest) { r.DNSNames = []string{"db.prod"} }), http.StatusForbidden, "fingerprint"},
		{"for one name more", "/1.0/sign", otherCSR(func(r *x509.CertificateRequest) { r.DNSNames = append(r.DNSNames, "db.prod") }), http.StatusForbidden, "fingerprint"},
		{"for fewer names", "/1.0/sign", otherCSR(func(r *x509.CertificateRequest) { r.DNSNames = r.DNSNames[:1] }), http.StatusForbidden, "fingerprint"},
		{"for another identity", "/1.0/sign", otherCSR(func(r *x509.CertificateRequest) { r.URIs[0].Path = "/ns/shop/sa/admin" }), http.StatusForbidden, "fingerprint"},
		{"for another common name", "/1.0/sign", otherCSR(func(r *x509.CertificateRequest) { r.Subject.CommonName = "postgres" }), http.StatusForbidden, "fingerprint"},
		{"for a CA", "/1.0/sign", func(t *testing.T, th *theft) map[string]any { return signWith(th.token, authorityCSR(t, th)) }, http.StatusForbidden, "fingerprint"},
		{"on the CA's older path", "/sign", otherCSR(func(*x509.CertificateRequest) {}), http.StatusForbidden, "fingerprint"},
		{"with other names in it", "/1.0/sign", otherToken(rewritten("web.shop", "db.prod")), http.StatusUnauthorized, "authorization"},
		{"with a longer life", "/1.0/sign", otherToken(rewritten(`"exp":1`, `"exp":9`)), http.StatusUnauthorized, "authorization"},
		{"without its binding", "/1.0/sign", otherToken(rewritten(`"cnf"`, `"xxx"`)), http.StatusUnauthorized, "authorization"},
		{"without a signature", "/1.0/sign", otherToken(unsigned), http.StatusUnauthorized, "authorization"},
		{"with the thief's signature", "/1.0/sign", otherToken(forged), http.StatusUnauthorized, "authorization"},
		{"to revoke", "/1.0/revoke", func(_ *testing.T, th *theft) map[string]any {
			return map[string]any{"ott": th.token, "serial": "1234", "passive": true}
		}, http.StatusUnauthorized, "authorization"},
	} {
		t.Run(test.name, func(t *testing.T) {
			th := steal(t, ca, func() error {
				_, err := s.Sign(t.Context(), signingRequest(t))
				return err
			})
			if status, answer := post(t, ca, test.path, test.body(t, th)); status != test.status || !strings.Contains(answer, test.message) {
				t.Errorf("status %d, want %d with %q: %s", status, test.status, test.message, answer)
			}
		})
	}
}

// authorityCSR requests a CA certificate.
func authorityCSR(t *testing.T, th *theft) *x509.CertificateRequest {
	t.Helper()
	return th.csrFor(t, func(r *x509.CertificateRequest) {
		r.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}
	})
}

// A token that was not used yet is valid once. Its second use fails, for the thief
// and for the owner.
func TestAttackByReplay(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	th := steal(t, ca, func() error {
		_, err := s.Sign(t.Context(), signingRequest(t))
		return err
	})
	if status, answer := post(t, ca, "/1.0/sign", signWith(th.token, th.csr)); status != http.StatusCreated {
		t.Fatalf("the first use: status %d: %s", status, answer)
	}
	for range 2 {
		if status, answer := post(t, ca, "/1.0/sign", signWith(th.token, th.csr)); status != http.StatusUnauthorized {
			t.Errorf("a replay: status %d: %s", status, answer)
		}
	}
}

// A token is valid for one CA only. Another CA rejects it, even if the CA's name,
// the provisioner's name and the password are the same.
func TestAttackAtAnotherCA(t *testing.T) {
	ca, other := startCA(t), startCA(t)
	s := newSigner(t, configFor(ca))
	th := steal(t, ca, func() error {
		_, err := s.Sign(t.Context(), signingRequest(t))
		return err
	})
	if status, answer := post(t, other, "/1.0/sign", signWith(th.token, th.csr)); status != http.StatusUnauthorized {
		t.Errorf("status %d: %s", status, answer)
	}
}

// A token for a revocation cannot sign, and is valid for its serial number only.
func TestAttackWithARevocation(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	revocation := steal(t, ca, func() error { return s.Revoke(t.Context(), issuer.Revocation{Serial: "1234"}) })
	csr := revocation.csrFor(t, func(r *x509.CertificateRequest) {
		r.Subject.CommonName, r.DNSNames, r.URIs = "1234", []string{"1234"}, nil
	})
	if status, answer := post(t, ca, "/1.0/sign", signWith(revocation.token, csr)); status != http.StatusUnauthorized {
		t.Errorf("sign with the token: status %d: %s", status, answer)
	}
	again := steal(t, ca, func() error { return s.Revoke(t.Context(), issuer.Revocation{Serial: "1234"}) })
	if status, answer := post(t, ca, "/1.0/revoke", map[string]any{"ott": again.token, "serial": "5678", "passive": true}); status != http.StatusForbidden {
		t.Errorf("revoke another serial number: status %d: %s", status, answer)
	}
}

// An attacker who modifies requests to the CA cannot change the pod's certificate:
// the issuer rejects other validity periods, and template data has no effect.
func TestAttackModifiedRequest(t *testing.T) {
	ca := startCA(t)
	i := newIssuer(t, newSigner(t, configFor(ca)))
	for name, test := range map[string]struct {
		key   string
		value any
		want  string
	}{
		"a longer life":     {"notAfter", "20h", "longer"},
		"a later beginning": {"notBefore", "30m", "not valid yet"},
	} {
		t.Run(name, func(t *testing.T) {
			rewriting(t, ca, test.key, test.value)
			defer ca.Intercept(nil)
			if c, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, %v", c, err)
			}
		})
	}
	t.Run("data for a template", func(t *testing.T) {
		rewriting(t, ca, "templateData", map[string]any{"subject": "postgres", "sans": []any{map[string]string{"type": "dns", "value": "db.prod"}}, "isCA": true})
		defer ca.Intercept(nil)
		c, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
		if err != nil {
			t.Fatal(err)
		}
		if leaf := c.Leaf(); bytes.Contains(leaf.Raw, []byte("postgres")) || bytes.Contains(leaf.Raw, []byte("db.prod")) || leaf.IsCA {
			t.Errorf("%x", leaf.Raw)
		}
	})
}

// rewriting changes one field of all signing requests before the CA receives them.
func rewriting(t *testing.T, ca *embeddedca.CA, key string, value any) {
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				var body map[string]any
				if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
					t.Error(err)
				}
				body[key] = value
				changed, err := json.Marshal(body)
				if err != nil {
					t.Error(err)
				}
				r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(changed)), int64(len(changed))
			}
			next.ServeHTTP(w, r)
		})
	})
}
