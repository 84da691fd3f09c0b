package stepca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/authority/policy"
	"github.com/smallstep/certificates/authority/provisioner"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/embeddedca"
)

func hours(n float64) *provisioner.Duration {
	return &provisioner.Duration{Duration: time.Duration(n * float64(time.Hour))}
}

// lifetimeOf is what the CA was asked for: it backdates by a minute.
func lifetimeOf(leaf *x509.Certificate) time.Duration {
	return leaf.NotAfter.Sub(leaf.NotBefore) - time.Minute
}

// Without a configured duration, certificates live as long as the CA allows by default,
// also if only claims of the whole CA say so, which it does not show. What is configured
// counts. The policy sees the lifetime that the certificate has, or a longer one.
func TestDefaultLifetime(t *testing.T) {
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		own, all   provisioner.Claims
		configured issuer.Lifetimes
		want, seen time.Duration
	}{
		"no claims":                {provisioner.Claims{}, provisioner.Claims{}, issuer.Lifetimes{}, day, day},
		"maximum and default":      {provisioner.Claims{MaxTLSDur: hours(8), DefaultTLSDur: hours(8)}, provisioner.Claims{}, issuer.Lifetimes{}, 8 * time.Hour, 8 * time.Hour},
		"default":                  {provisioner.Claims{DefaultTLSDur: hours(2)}, provisioner.Claims{}, issuer.Lifetimes{}, 2 * time.Hour, 2 * time.Hour},
		"long default":             {provisioner.Claims{DefaultTLSDur: hours(100)}, provisioner.Claims{}, issuer.Lifetimes{}, 100 * time.Hour, 100 * time.Hour},
		"maximum, default of all":  {provisioner.Claims{MaxTLSDur: hours(8)}, provisioner.Claims{DefaultTLSDur: hours(4)}, issuer.Lifetimes{}, 8 * time.Hour, 8 * time.Hour},
		"minimum over a day":       {provisioner.Claims{MinTLSDur: hours(30), MaxTLSDur: hours(100), DefaultTLSDur: hours(40)}, provisioner.Claims{}, issuer.Lifetimes{}, 40 * time.Hour, 40 * time.Hour},
		"maximum of all":           {provisioner.Claims{}, provisioner.Claims{MaxTLSDur: hours(8), DefaultTLSDur: hours(6)}, issuer.Lifetimes{}, 6 * time.Hour, day},
		"long default of all":      {provisioner.Claims{}, provisioner.Claims{MaxTLSDur: hours(200), DefaultTLSDur: hours(100)}, issuer.Lifetimes{}, day, day},
		"configured":               {provisioner.Claims{DefaultTLSDur: hours(8)}, provisioner.Claims{}, issuer.Lifetimes{Default: time.Hour}, time.Hour, time.Hour},
		"configured maximum":       {provisioner.Claims{DefaultTLSDur: hours(8)}, provisioner.Claims{}, issuer.Lifetimes{Max: 3 * time.Hour}, 3 * time.Hour, 3 * time.Hour},
		"configured minimum":       {provisioner.Claims{DefaultTLSDur: hours(8)}, provisioner.Claims{}, issuer.Lifetimes{Min: 12 * time.Hour}, 12 * time.Hour, 12 * time.Hour},
		"configured, not by claim": {provisioner.Claims{}, provisioner.Claims{}, issuer.Lifetimes{Max: 3 * time.Hour, Min: time.Hour}, 3 * time.Hour, 3 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			ca := startWith(t, embeddedca.Config{Claims: &test.all})
			must(t, ca.Claim(func(c *provisioner.Claims) {
				test.own.MinTLSDur = either(test.own.MinTLSDur, c.MinTLSDur)
				*c = test.own
			}))
			var seen time.Duration
			i, err := issuer.New(issuer.Config{Signer: newSigner(t, configFor(ca)), Lifetimes: test.configured, Policy: func(_ context.Context, _ issuer.Pod, r issuer.Request) error {
				seen = r.Duration
				return nil
			}})
			must(t, err)
			r := request()
			r.Duration = 0
			for range 2 { // before the claims are known, and after
				c, err := i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
				must(t, err)
				if got := lifetimeOf(c.Leaf()); got != test.want || seen != test.seen {
					t.Errorf("a lifetime of %s, want %s; the policy has seen %s, want %s", got, test.want, seen, test.seen)
				}
			}
		})
	}
}

func either(a, b *provisioner.Duration) *provisioner.Duration {
	if a != nil {
		return a
	}
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func startWith(t *testing.T, c embeddedca.Config) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(c)
	must(t, err)
	t.Cleanup(ca.Stop)
	return ca
}

// A policy that denies long lifetimes decides about the one that the claims give, also in
// the first call, in which they are not known when the request is prepared.
func TestPolicyDecidesAboutTheDefaultLifetime(t *testing.T) {
	for hours, allowed := range map[time.Duration]bool{20: true, 48: false} {
		ca := startWith(t, embeddedca.Config{})
		must(t, ca.Claim(func(c *provisioner.Claims) { c.DefaultTLSDur = &provisioner.Duration{Duration: hours * time.Hour} }))
		i, err := issuer.New(issuer.Config{Signer: newSigner(t, configFor(ca)), Policy: func(_ context.Context, _ issuer.Pod, r issuer.Request) error {
			if r.Duration > 24*time.Hour {
				return fmt.Errorf("%w: too long", issuer.Denied)
			}
			return nil
		}})
		must(t, err)
		r := request()
		r.Duration = 0
		signs := ca.Signs()
		_, err = i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
		if (err == nil) != allowed || !allowed && !errors.Is(err, issuer.Denied) {
			t.Errorf("%d hours: %v", hours, err)
		}
		if !allowed && ca.Signs() != signs {
			t.Error("the CA was asked before the policy")
		}
	}
}

// Certificates follow claims that change, once they are read again.
func TestDefaultLifetimeFollowsTheClaims(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	i := newIssuer(t, s)
	r := request()
	r.Duration = 0
	for _, n := range []float64{8, 2, 30} {
		must(t, ca.Claim(func(c *provisioner.Claims) { c.DefaultTLSDur, c.MaxTLSDur = hours(n), hours(n) }))
		_, err := s.HolderRenewal(t.Context(), 0)
		must(t, err)
		c, err := i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
		must(t, err)
		if got := lifetimeOf(c.Leaf()); got != hours(n).Duration {
			t.Errorf("a lifetime of %s, want %v hours", got, n)
		}
	}
}

// A lifetime that the pod or the configuration asks for is never shortened silently: the
// CA refuses it, and the error has both values and what to change.
func TestRefusedLifetimes(t *testing.T) {
	claims := provisioner.Claims{MinTLSDur: hours(1), MaxTLSDur: hours(8), DefaultTLSDur: hours(8)}
	for _, whole := range []bool{false, true} {
		c := embeddedca.Config{}
		if whole {
			c.Claims = &claims
		}
		ca := startWith(t, c)
		must(t, ca.Claim(func(own *provisioner.Claims) {
			if *own = (provisioner.Claims{}); !whole {
				*own = claims
			}
		}))
		for duration, want := range map[time.Duration][]string{
			24 * time.Hour:   {"24h1m0s", "8h1m0s", "maxTLSCertDuration", "duration.default", "--x509-max-dur"},
			30 * time.Minute: {"31m0s", "1h0m0s", "minTLSCertDuration", "duration.default", "--x509-min-dur"},
		} {
			requested, configured := request(), request()
			requested.Duration, configured.Duration = duration, 0
			for r, lifetimes := range map[*issuer.Request]issuer.Lifetimes{&requested: {}, &configured: {Default: duration}} {
				i, err := issuer.New(issuer.Config{Signer: newSigner(t, configFor(ca)), Policy: allowAll, Lifetimes: lifetimes})
				must(t, err)
				_, err = i.Issue(t.Context(), issuer.Applicant{}, *r, issuer.PrivateKey{})
				expectDenied(t, err, want...)
			}
		}
	}
}

func expectDenied(t *testing.T, err error, texts ...string) {
	t.Helper()
	if !errors.Is(err, issuer.Denied) {
		t.Errorf("not denied: %v", err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v does not contain %q", err, text)
		}
	}
}

// What the template and the policies of the CA refuse or change is in the error, with the
// setting. It is no outage, so that one pod cannot keep the others from their certificates.
func TestTemplatesAndPoliciesOfTheCA(t *testing.T) {
	template := func(text string) func(*provisioner.JWK) {
		return func(p *provisioner.JWK) {
			p.Options = &provisioner.Options{X509: &provisioner.X509Options{Template: text}}
		}
	}
	allow := func(o provisioner.X509Options) func(*provisioner.JWK) {
		return func(p *provisioner.JWK) { p.Options = &provisioner.Options{X509: &o} }
	}
	const names = `"subject": {{ toJson .Subject }}, "sans": {{ toJson .SANs }}, `
	for name, test := range map[string]struct {
		change  func(*provisioner.JWK)
		outcome issuer.Outcome
		want    []string
	}{
		"adds a name": {template(`{"subject": {{ toJson .Subject }}, "sans": {{ append .SANs (dict "type" "dns" "value" "db.shop") | toJson }}}`),
			issuer.InvalidAnswer, []string{`the provisioner's X.509 template added DNS name "db.shop"; `}},
		"removes names": {template(`{"subject": {{ toJson .Subject }}, "dnsNames": ["web.shop"]}`),
			issuer.InvalidAnswer, []string{`the provisioner's X.509 template removed DNS name "*.web.shop.svc.cluster.local", removed DNS name "web.shop.svc", removed URI`}},
		"changes the common name": {template(`{"subject": {"commonName": "admin"}, "sans": {{ toJson .SANs }}}`),
			issuer.InvalidAnswer, []string{`the provisioner's X.509 template changed the common name from "web.shop" to "admin"`}},
		"makes a CA": {template(`{` + names + `"keyUsage": ["certSign"], "basicConstraints": {"isCA": true}}`),
			issuer.InvalidAnswer, []string{"the provisioner's X.509 template made it a CA certificate"}},
		"changes the key usage": {template(`{` + names + `"keyUsage": ["crlSign"]}`),
			issuer.InvalidAnswer, []string{"the provisioner's X.509 template set a key usage that lets it sign"}},
		"refuses": {template(`{{ fail "no certificates on Sundays" }}`),
			issuer.Denied, []string{"no certificates on Sundays", "the provisioner's X.509 template refuses"}},
		"is broken": {template(`{"subject": {{ toJson .Subject }}, "sans": `),
			issuer.Unavailable, []string{"error applying certificate template", "correct the template"}},
		"policy that denies": {allow(provisioner.X509Options{DeniedNames: &policy.X509NameOptions{DNSDomains: []string{"web.shop.svc"}}}),
			issuer.Denied, []string{`dns name "web.shop.svc" not allowed`, "policy of the CA or of its provisioner"}},
		"policy that allows others": {allow(provisioner.X509Options{AllowedNames: &policy.X509NameOptions{DNSDomains: []string{"*.shop", "*.svc"}}}),
			issuer.Denied, []string{"not allowed", "policy of the CA or of its provisioner"}},
	} {
		t.Run(name, func(t *testing.T) {
			ca := startCA(t)
			must(t, ca.Change(test.change))
			_, err := newIssuer(t, newSigner(t, configFor(ca))).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
			if issuer.OutcomeOf(err) != test.outcome {
				t.Errorf("outcome %v: %v", issuer.OutcomeOf(err), err)
			}
			for _, text := range test.want {
				if !strings.Contains(fmt.Sprint(err), text) {
					t.Errorf("%v does not contain %q", err, text)
				}
			}
		})
	}
}

// A policy of the whole CA is named, too.
func TestPolicyOfTheWholeCA(t *testing.T) {
	ca := startWith(t, embeddedca.Config{Policy: &policy.Options{X509: &policy.X509PolicyOptions{
		AllowedNames: &policy.X509NameOptions{DNSDomains: []string{"localhost", "*.shop"}, IPRanges: []string{"127.0.0.1"}},
	}}})
	_, err := newIssuer(t, newSigner(t, configFor(ca))).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
	expectDenied(t, err, `" not allowed`, "policy of the CA or of its provisioner")
}

// An X5C provisioner refuses what outlives its certificate. No pod has asked for a default
// lifetime, so the CA may give a shorter one.
func TestProvisionerWhoseCertificateExpiresSoon(t *testing.T) {
	ca := startCA(t)
	must(t, ca.Claim(func(c *provisioner.Claims) { c.DefaultTLSDur = hours(3) }))
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if strings.HasSuffix(r.URL.Path, "/sign") && !bytes.Contains(body, []byte(`"notAfter":""`)) {
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, `{"status": 403, "message": "requested certificate notAfter (A) is after the expiration of the provisioning credential (B)"}`)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	i := newIssuer(t, newSigner(t, configFor(ca)))
	r := request()
	_, err := i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
	expectDenied(t, err, "after the expiration of the provisioning credential", "X5C provisioner", "duration.default")
	r.Duration = 0
	c, err := i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
	must(t, err)
	if got := lifetimeOf(c.Leaf()); got != 3*time.Hour {
		t.Errorf("a lifetime of %s", got)
	}
}
