package issuer_test

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
)

// lifetimeSigner is a claimSigner with claims about lifetimes.
type lifetimeSigner struct {
	claimSigner
	claims *issuer.ProvisionerClaims // nil until Connect
}

func (s *lifetimeSigner) LifetimeClaims() *issuer.ProvisionerClaims {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claims
}

// Configured lifetimes that the CA refuses are reported when they are known and when the
// claims change, with both values and what to change, and the issuer stays ready.
func TestRefusedLifetimesAreReported(t *testing.T) {
	s := &lifetimeSigner{claimSigner: claimSigner{changingSigner: newChangingSigner(t)}}
	claim := func(l issuer.Lifetimes) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.claims = &issuer.ProvisionerClaims{Provisioner: "admin", Lifetimes: l}
	}
	claim(issuer.Lifetimes{Max: 8 * time.Hour})
	configured := issuer.Lifetimes{Default: 24 * time.Hour, Min: time.Minute, Max: 48 * time.Hour}
	watch(t, map[string]issuer.Config{"a": {Signer: s, Lifetimes: configured}}, func(r *issuer.Readiness, logged func() string) {
		expect := func(when string, warnings, ends int, texts ...string) {
			t.Helper()
			details := r.Details()
			if r.Err() != nil || gauge(t, r, "step_csi_issuer_ready", "a") != 1 {
				t.Errorf("%s: not ready: %v", when, r.Err())
			}
			if lines := strings.Count(details, "\n"); lines != min(len(texts), 1) {
				t.Errorf("%s: %q", when, details)
			}
			for _, text := range texts {
				if !strings.Contains(details, text) || !strings.Contains(logged(), strings.ReplaceAll(text, `"`, `\"`)) {
					t.Errorf("%s: no %q in %q, or in the log", when, text, details)
				}
			}
			if strings.Count(logged(), "Warning: the CA refuses configured lifetimes") != warnings || strings.Count(logged(), "The CA no longer refuses configured lifetimes") != ends {
				t.Errorf("%s: the log:\n%s", when, logged())
			}
		}
		first := []string{
			`duration.default is 24h0m0s, longer than 8h0m0s, the maximum of provisioner "admin" at the CA (claim maxTLSCertDuration): the CA refuses pods without the attribute duration; set duration.default to 8h0m0s, or run at the CA: step ca provisioner update "admin" --x509-max-dur=24h0m0s`,
			`duration.max is 48h0m0s, longer than 8h0m0s`,
		}
		expect("at the start", 1, 0, first...)
		pass(time.Hour)
		expect("an hour later", 1, 0, first...)
		claim(issuer.Lifetimes{Max: 48 * time.Hour, Min: 36 * time.Hour})
		pass(6 * time.Minute)
		expect("other claims", 2, 0, `duration.default is 24h0m0s, shorter than 36h0m0s, the minimum`, `duration.min is 1m0s, shorter than 36h0m0s`, "--x509-min-dur=1m0s")
		claim(issuer.Lifetimes{Min: time.Minute})
		pass(6 * time.Minute)
		expect("claims that fit", 2, 1)
		claim(issuer.Lifetimes{Max: time.Second})
		pass(6 * time.Minute)
		expect("claims that fit nothing", 3, 1, "duration.default is", "duration.max is", "duration.min is 1m0s, longer than 1s")
	})
}

// While the claims are not known, the lifetime is a guess, and the policy sees the true
// one before the CA is called. An error of the connection is the issuer's.
func TestClaimsAreReadBeforeTheFirstCall(t *testing.T) {
	s := &lifetimeSigner{claimSigner: claimSigner{changingSigner: newChangingSigner(t)}}
	s.set("", errors.New("no route"))
	i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
	if err != nil {
		t.Fatal(err)
	}
	r := request()
	r.Duration = 0
	if i.DefaultLifetime() != 0 {
		t.Errorf("the default is known: %s", i.DefaultLifetime())
	}
	if _, err := i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{}); err == nil || !strings.Contains(err.Error(), "no route") {
		t.Errorf("without a connection: %v", err)
	}
	s.set("", nil)
	s.claims = &issuer.ProvisionerClaims{Lifetimes: issuer.Lifetimes{Default: 2 * time.Hour}}
	c, err := i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(c.Leaf().NotAfter); left > 2*time.Hour || left < 90*time.Minute {
		t.Errorf("a certificate for %s", left)
	}
	if i.DefaultLifetime() != 2*time.Hour {
		t.Errorf("the default is %s", i.DefaultLifetime())
	}
}

// A CA that shortens certificates is named in the log, once, with both values.
func TestShortenedLifetimeIsLoggedOnce(t *testing.T) {
	var lines log[string]
	ctx := klog.NewContext(t.Context(), funcr.New(func(_, args string) { lines.add(args) }, funcr.Options{}))
	s := newSigner(t)
	i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := i.Issue(ctx, issuer.Applicant{}, request(), issuer.PrivateKey{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := lines.all(); len(got) != 0 {
		t.Errorf("certificates that live as long as requested: %q", got)
	}
	s.spoil = func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(20 * time.Minute) }
	for range 3 {
		if _, err := i.Issue(ctx, issuer.Applicant{}, request(), issuer.PrivateKey{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := lines.all(); len(got) != 1 || !strings.Contains(got[0], `"requested"="1h0m0s" "lifetime"="20m0s"`) {
		t.Errorf("the log: %q", got)
	}
}
