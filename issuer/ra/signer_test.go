package ra_test

import (
	"context"
	"io/fs"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
)

func config() ra.Config {
	return ra.Config{
		URL:         "https://ra.invalid:8443",
		Fingerprint: strings.Repeat("84a0", 16),
		Issuer:      "default",
		Token:       func() ([]byte, error) { return []byte("a.b.c"), nil },
		Timeout:     100 * time.Millisecond,
	}
}

func TestWrongConfigurationIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*ra.Config)
		want   string
	}{
		"http":             {func(c *ra.Config) { c.URL = "http://ra.invalid" }, "url"},
		"a path":           {func(c *ra.Config) { c.URL = "https://ra.invalid/sign" }, "url"},
		"no pins":          {func(c *ra.Config) { c.Fingerprint = "" }, "fingerprint"},
		"rubbish as roots": {func(c *ra.Config) { c.Fingerprint, c.CABundle = "", []byte("x") }, "caBundleFile"},
		"no issuer":        {func(c *ra.Config) { c.Issuer = "" }, "provisioner.name"},
		"no token":         {func(c *ra.Config) { c.Token = nil }, "provisioner.tokenFile"},
	} {
		c := config()
		test.change(&c)
		if _, err := ra.New(c); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, test.want)
		}
	}
}

func newSigner(t *testing.T, c ra.Config) *ra.Signer {
	t.Helper()
	s, err := ra.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// If the plugin cannot read its own token, the error must be about the plugin, and
// not about the pod's token: the operator has to fix the plugin.
func TestUnreadableOwnTokenIsTheCallers(t *testing.T) {
	c := config()
	c.Token = func() ([]byte, error) { return nil, fs.ErrNotExist }
	err := newSigner(t, c).Connect(t.Context())
	if issuer.OutcomeOf(err) != issuer.CallerRejected || !strings.Contains(err.Error(), "the token of the node plugin's own pod") {
		t.Errorf("%v: %v", issuer.OutcomeOf(err), err)
	}
}

// Sign fails without a valid pod token, and when the registration authority is
// unreachable.
func TestSignWithoutTokenOrAuthority(t *testing.T) {
	t.Cleanup(func() { // goleak itself waits for less than a second
		left := goleak.Find()
		for deadline := time.Now().Add(time.Minute); left != nil && time.Now().Before(deadline); {
			left = goleak.Find()
		}
		if left != nil {
			t.Error(left)
		}
	})
	s := newSigner(t, config())
	key, err := issuer.Ed25519.Generate()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuer.NewCSR(issuer.Request{}, key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, test := range map[string]struct {
		token issuer.Token
		want  issuer.Outcome
		text  string
	}{
		"none":    {issuer.Token{}, issuer.NoPodToken, "passed no token for the audience step-csi: the CSIDriver object needs tokenRequests"},
		"expired": {issuer.NewToken("a.b.c", now.Add(-time.Hour)), issuer.NoPodToken, "the last token expired 1h0m0s ago"},
		// By this machine's clock. The API server decides.
		"expired just now": {issuer.NewToken("a.b.c", now.Add(-2*time.Minute)), issuer.Unavailable, "ra.invalid"},
		"valid":            {issuer.NewToken("a.b.c", now.Add(time.Hour)), issuer.Unavailable, "ra.invalid"},
	} {
		_, err := s.Sign(t.Context(), issuer.SigningRequest{Applicant: issuer.Applicant{Token: test.token}, CSR: csr})
		if issuer.OutcomeOf(err) != test.want || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Connect(t.Context()); issuer.OutcomeOf(err) != issuer.Unavailable {
		t.Errorf("connect: %v", err)
	}
	// A caller that gives up says nothing about the registration authority's
	// availability.
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Connect(canceled); issuer.OutcomeOf(err) != issuer.Canceled {
		t.Errorf("canceled: %v", err)
	}
}
