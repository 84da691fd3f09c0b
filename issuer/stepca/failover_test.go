package stepca_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.step.sm/crypto/jose"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/proxy"
)

// instances are two URLs of one CA, with a proxy in front of each. They have different
// hosts, like instances in different places.
type instances struct {
	ca            *embeddedca.CA
	first, second *proxy.Proxy
	urls          []string

	mu     sync.Mutex
	tokens []token // of all POST requests
}

type token struct {
	id, audience, host string
}

func startInstances(t *testing.T) (*instances, stepca.Config) {
	t.Helper()
	ca := startCA(t)
	p, c := behindProxy(t, ca)
	q, _ := behindProxy(t, ca)
	_, port, err := net.SplitHostPort(q.Address())
	if err != nil {
		t.Fatal(err)
	}
	in := &instances{ca: ca, first: p, second: q, urls: []string{"https://" + p.Address(), "https://localhost:" + port}}
	in.intercept(t, nil)
	c.URL = ""
	return in, c
}

// intercept records the tokens of all requests, and has answer handle them if it returns
// true.
func (in *instances) intercept(t *testing.T, answer func(w http.ResponseWriter, r *http.Request) bool) {
	in.ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return // the connection broke
				}
				in.record(t, r.Host, body)
				r.Body = io.NopCloser(strings.NewReader(string(body)))
			}
			if answer == nil || !answer(w, r) {
				next.ServeHTTP(w, r)
			}
		})
	})
}

func (in *instances) record(t *testing.T, host string, body []byte) {
	var request struct{ OTT string }
	if err := json.Unmarshal(body, &request); err != nil {
		t.Error(err)
		return
	}
	parsed, err := jose.ParseSigned(request.OTT)
	if err != nil {
		t.Error(err)
		return
	}
	var claims jose.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil || len(claims.Audience) != 1 {
		t.Errorf("%v, %v", claims.Audience, err)
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.tokens = append(in.tokens, token{claims.ID, claims.Audience[0], host})
}

func (in *instances) checkTokens(t *testing.T) {
	t.Helper()
	in.mu.Lock()
	defer in.mu.Unlock()
	var ids []string
	for _, token := range in.tokens {
		if !strings.HasPrefix(token.audience, "https://"+token.host+"/1.0/") || slices.Contains(ids, token.id) {
			t.Errorf("%s received a token for %s, among %v", token.host, token.audience, in.tokens)
		}
		ids = append(ids, token.id)
	}
}

func newFailover(t *testing.T, c stepca.Config, urls []string) *stepca.Failover {
	t.Helper()
	f, err := stepca.NewFailover(c, urls)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// inUse returns the URL that calls go to first.
func inUse(f *stepca.Failover) string {
	for _, u := range f.URLs() {
		if u.InUse {
			return u.URL
		}
	}
	return ""
}

// However a URL fails, before or after the signer has connected to it, the same call
// signs at the next URL, and the next call goes there at once.
func TestNextURLSigns(t *testing.T) {
	t.Parallel()
	page := func(status int) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.WriteHeader(status)
			fmt.Fprint(w, "<html>from the ingress</html>")
		}
	}
	faults := map[string]struct {
		fault  proxy.Fault
		answer func(w http.ResponseWriter)
	}{
		"connection refused": {fault: proxy.Refuse},
		"connection reset":   {fault: proxy.Reset},
		"answer cut off":     {fault: proxy.ResetAnswer},
		"no answer":          {fault: proxy.Blackhole},
		"503 of an ingress":  {answer: page(http.StatusServiceUnavailable)},
		"404 of an ingress":  {answer: page(http.StatusNotFound)},
		"500 of step-ca": {answer: func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"status":500,"message":"database is down"}`)
		}},
	}
	for name, test := range faults {
		for _, connected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, connected before: %v", name, connected), func(t *testing.T) {
				t.Parallel()
				in, c := startInstances(t)
				f := newFailover(t, c, in.urls)
				if connected {
					if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil {
						t.Fatal(err)
					}
				}
				set(t, in.first, test.fault)
				if test.answer != nil {
					in.intercept(t, func(w http.ResponseWriter, r *http.Request) bool {
						fails := "https://"+r.Host == in.urls[0]
						if fails {
							test.answer(w)
						}
						return fails
					})
				}
				if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil {
					t.Fatal(err)
				}
				before := in.first.Connections()
				for range 3 {
					if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil {
						t.Error(err)
					}
				}
				if more := in.first.Connections() - before; more > 0 {
					t.Errorf("later calls opened %d connections to the URL that failed", more)
				}
				if now := inUse(f); now != in.urls[1] || f.URLs()[0].Failures != 1 || f.URLs()[1].Failures != 0 {
					t.Errorf("in use: %s; %+v", now, f.URLs())
				}
				in.checkTokens(t)
			})
		}
	}
}

// An answer of the CA counts, whatever it is: no other instance is asked.
func TestDeniedIsNotAskedAgain(t *testing.T) {
	in, c := startInstances(t)
	f := newFailover(t, c, in.urls)
	for _, status := range []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden} {
		in.intercept(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				w.WriteHeader(status)
				fmt.Fprintf(w, `{"status":%d,"message":"no"}`, status)
			}
			return r.Method == http.MethodPost
		})
		if _, err := f.Sign(t.Context(), signingRequest(t)); issuer.OutcomeOf(err) != issuer.Denied || !strings.Contains(err.Error(), in.urls[0]) {
			t.Errorf("%d: %v", status, err)
		}
	}
	in.intercept(t, func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusNotImplemented)
		fmt.Fprint(w, `{"status":501,"message":"no database"}`)
		return true
	})
	if err := f.Revoke(t.Context(), issuer.Revocation{Serial: "1"}); issuer.OutcomeOf(err) != issuer.Unsupported {
		t.Error(err)
	}
	if n := in.second.Connections(); n > 0 {
		t.Errorf("%d connections to the second URL", n)
	}
}

// The error names every URL that was tried, with its own reason.
func TestErrorNamesAllURLs(t *testing.T) {
	in, c := startInstances(t)
	f := newFailover(t, c, in.urls)
	in.intercept(t, func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	set(t, in.first, proxy.Refuse)
	for name, call := range map[string]func() error{
		"connect": func() error { return f.Connect(t.Context()) },
		"sign":    func() error { _, err := f.Sign(t.Context(), signingRequest(t)); return err },
		"roots":   func() error { _, err := f.RefreshRoots(t.Context()); return err },
		"revoke":  func() error { return f.Revoke(t.Context(), issuer.Revocation{Serial: "1"}) },
		"claims":  func() error { _, err := f.HolderRenewal(t.Context(), 0); return err },
	} {
		err := call()
		if issuer.OutcomeOf(err) != issuer.Unavailable {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range []string{in.urls[0], "connection refused", in.urls[1], "503"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in %v", name, want, err)
			}
		}
	}
	for _, u := range f.URLs() {
		if u.Failures != 5 {
			t.Errorf("%+v", u)
		}
	}
	in.intercept(t, nil)
	if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("URLs that failed lately are still tried if no other works: %v", err)
	}
}

// A call that its caller gives up says nothing about the URL.
func TestCanceledCallIsNoFailureOfTheURL(t *testing.T) {
	in, c := startInstances(t)
	f := newFailover(t, c, in.urls)
	ctx, cancel := context.WithCancel(t.Context())
	in.intercept(t, func(_ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		return true
	})
	if err := f.Connect(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if u := f.URLs()[0]; u.Failures != 0 || in.second.Connections() != 0 {
		t.Errorf("%+v, %d connections to the second URL", u, in.second.Connections())
	}
	set(t, in.first, proxy.Refuse)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	if err := f.Connect(ctx); !errors.Is(err, context.Canceled) || inUse(f) != in.urls[0] || f.URLs()[1].Failures != 0 {
		t.Errorf("canceled at the second URL: %s in use: %v", inUse(f), err)
	}
}

// The refresh of the roots returns to the first URL once that works again, so that no pod
// waits for the attempt.
func TestRefreshReturnsToTheFirstURL(t *testing.T) {
	t.Parallel()
	in, c := startInstances(t)
	f := newFailover(t, c, in.urls)
	set(t, in.first, proxy.Refuse)
	if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil || inUse(f) != in.urls[1] {
		t.Fatalf("%s in use: %v", inUse(f), err)
	}
	set(t, in.first, proxy.None)
	if _, err := f.RefreshRoots(t.Context()); err != nil || inUse(f) != in.urls[1] {
		t.Errorf("%s in use at once: %v", inUse(f), err)
	}
	for begin := time.Now(); inUse(f) != in.urls[0]; time.Sleep(100 * time.Millisecond) {
		if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil || inUse(f) != in.urls[1] {
			t.Fatalf("a certificate from %s: %v", inUse(f), err)
		}
		if _, err := f.RefreshRoots(t.Context()); err != nil {
			t.Fatal(err)
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("the first URL is not used again")
		}
	}
	// The second URL has answered roots long ago. They never replace newer ones.
	newest, err := f.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set(t, in.first, proxy.Refuse)
	if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil || inUse(f) != in.urls[1] {
		t.Fatalf("%s in use: %v", inUse(f), err)
	}
	if roots, err := f.Roots(t.Context()); err != nil || roots.Asked.Before(newest.Asked) {
		t.Errorf("roots of %s, after those of %s: %v", roots.Asked, newest.Asked, err)
	}
	in.checkTokens(t)
}

// All URLs are verified by the same roots, of one CA. A connection that was verified by
// roots of the past is replaced.
func TestURLsShareTrust(t *testing.T) {
	in, c := startInstances(t)
	f := newFailover(t, c, in.urls)
	h := startHostileCA(t) // its attacker is the new root
	both := wrapped([]*x509.Certificate{in.ca.Root(), h.attacker.Root})
	if err := f.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	in.intercept(t, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/roots") {
			answer(w, map[string]any{"crts": both})
			return true
		}
		return false
	})
	set(t, in.first, proxy.Refuse)
	if _, err := f.RefreshRoots(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []*x509.Certificate{in.ca.Root(), h.attacker.Root}
	if roots, err := f.Roots(t.Context()); err != nil || !trust.Same(roots.Own, want) || !trust.Same(f.Trust().Trusted(), want) {
		t.Errorf("%d roots, %d trusted: %v", len(roots.Own), len(f.Trust().Trusted()), err)
	}
	// The first instance gets a certificate under the new root.
	ingress := startIngress(t, h.attacker, in.ca)
	in.first.To(ingress)
	set(t, in.first, proxy.None)
	set(t, in.second, proxy.Refuse)
	if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil {
		t.Errorf("the first URL with a certificate under the new root: %v", err)
	}
}

// Another CA behind one of the URLs gets no token.
func TestAnotherCAAtOneURL(t *testing.T) {
	in, c := startInstances(t)
	other := startCA(t)
	in.first.To(other.Address())
	var posts int
	other.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				posts++
			}
			next.ServeHTTP(w, r)
		})
	})
	f := newFailover(t, c, in.urls)
	if _, err := f.Sign(t.Context(), signingRequest(t)); err != nil || inUse(f) != in.urls[1] || posts > 0 {
		t.Errorf("%s in use, %d requests at the other CA: %v", inUse(f), posts, err)
	}
}

func TestWrongURLsAreRefused(t *testing.T) {
	c := configFor(startCA(t))
	c.URL = ""
	for want, urls := range map[string][]string{
		"at least one":        nil,
		"twice":               {"https://a.example", "https://b.example", "https://A.example:443/"},
		"urls: \"http://b\":": {"https://a.example", "http://b"},
	} {
		if _, err := stepca.NewFailover(c, urls); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", urls, err)
		}
	}
}

// The audience of a token has the normalised host: step-ca compares it byte by byte.
func TestURLInAnotherSpelling(t *testing.T) {
	ca := startCA(t)
	_, port, err := net.SplitHostPort(ca.Address())
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"https://LOCALHOST:%s", "https://localhost.:%s", "https://LocalHost.:%s/"} {
		c := configFor(ca)
		c.URL = fmt.Sprintf(url, port)
		if _, err := newSigner(t, c).Sign(t.Context(), signingRequest(t)); err != nil {
			t.Errorf("%s: %v", c.URL, err)
		}
	}
}
