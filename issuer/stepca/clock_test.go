package stepca_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.step.sm/crypto/jose"

	"github.com/flexstack/step-csi/test/embeddedca"
)

// A one-time token suits a CA whose clock is two minutes ahead or behind, with the minute
// of leeway that step-ca grants to spare, and a CA that has just been restarted: see
// TestSkewedClocks of the integration tests for such CAs.
func TestTokensAllowForSkewedClocks(t *testing.T) {
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	th := steal(t, ca, func() error {
		_, err := s.Sign(t.Context(), signingRequest(t))
		return err
	})
	parsed, err := jose.ParseSigned(th.token)
	if err != nil {
		t.Fatal(err)
	}
	var claims jose.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if claims.IssuedAt != nil || claims.NotBefore.Time().After(now.Add(-2*time.Minute)) || claims.Expiry.Time().Before(now.Add(2*time.Minute)) {
		t.Errorf("issued %v, valid from %s until %s; now it is %s", claims.IssuedAt, claims.NotBefore.Time(), claims.Expiry.Time(), now)
	}
}

// dated makes the CA answer as if its clock was ahead. It counts the requests for "health".
func dated(ca *embeddedca.CA, ahead time.Duration, refuse bool) *atomic.Int64 {
	var health atomic.Int64
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
			if r.URL.Path == "/health" {
				health.Add(1)
			}
			if refuse && r.Method == http.MethodPost {
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprint(w, `{"status":401,"message":"The request lacked necessary authorization to be completed. Please see the certificate authority logs for more info."}`)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	return &health
}

// step-ca never says why it answers 401. The error states how the clocks differ.
func TestRefusedTokenComparesTheClocks(t *testing.T) {
	for ahead, want := range map[time.Duration]string{
		0:                 `dnsNames; the clocks of the CA and of this machine agree\)`,
		3 * time.Minute:   `dnsNames; the clock of the CA is [23]m\d+s ahead of this machine's\)`,
		10 * time.Minute:  `\(the clock of the CA is (9|10)m\d+s ahead of this machine's: synchronize the clocks\)`,
		-10 * time.Minute: `\(the clock of the CA is (9|10)m\d+s behind this machine's: synchronize the clocks\)`,
	} {
		ca := startCA(t)
		dated(ca, ahead, true)
		s := newSigner(t, configFor(ca))
		if _, err := s.Sign(t.Context(), signingRequest(t)); !regexp.MustCompile(want).MatchString(fmt.Sprint(err)) {
			t.Errorf("%s ahead: %v; want %q", ahead, err, want)
		}
	}
}

// Without a verified connection there is no answer with a date. The error states how the
// clocks differ all the same, and what to do if they do not.
func TestServerOutsideItsValidityComparesTheClocks(t *testing.T) {
	for name, test := range map[string]struct {
		resume func(*embeddedca.CA) error
		ahead  time.Duration
		want   string // empty if the CA is accepted
	}{
		"expired":                     {(*embeddedca.CA).ResumeExpired, 0, "the clocks of the CA and of this machine agree; restart step-ca"},
		"the clock here is ahead":     {(*embeddedca.CA).ResumeExpired, -2 * time.Hour, "behind this machine's: synchronize the clocks"},
		"the CA's clock is ahead":     {func(ca *embeddedca.CA) error { return ca.ResumeAhead(10 * time.Minute) }, 11 * time.Minute, "ahead of this machine's: synchronize the clocks"},
		"its clock is a little ahead": {func(ca *embeddedca.CA) error { return ca.ResumeAhead(time.Minute) }, 2 * time.Minute, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ca := startCA(t)
			fingerprint := newSigner(t, configFor(ca)) // connected before
			if err := fingerprint.Connect(t.Context()); err != nil {
				t.Fatal(err)
			}
			ca.Stop()
			if err := test.resume(ca); err != nil {
				t.Fatal(err)
			}
			health := dated(ca, test.ahead, false)
			c := configFor(ca)
			c.Fingerprint, c.CABundle = "", ca.RootPEM()
			for kind, call := range map[string]func() error{
				"a new connection": func() error { return newSigner(t, c).Connect(t.Context()) },
				"a connection that was lost": func() error {
					_, err := fingerprint.Sign(t.Context(), signingRequest(t))
					return err
				},
			} {
				health.Store(0)
				err := call()
				switch {
				case test.want == "" && err != nil, test.want != "" && !strings.Contains(fmt.Sprint(err), test.want):
					t.Errorf("%s: %v; want an error with %q", kind, err, test.want)
				case test.want == "" && health.Load() > 0, test.want != "" && health.Load() != 1:
					t.Errorf("%s: %d requests to compare the clocks", kind, health.Load())
				}
			}
		})
	}
}
