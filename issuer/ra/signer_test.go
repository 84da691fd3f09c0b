package ra_test

import (
	"context"
	"errors"
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
			t.Errorf("%s: got %v, want something with %q", name, err, test.want)
		}
	}
}

// Without a token there is nothing to ask; without an authority, nobody.
func TestSignWithoutTokenOrAuthority(t *testing.T) {
	defer goleak.VerifyNone(t)
	s, err := ra.New(config())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
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
		want  error
		text  string
	}{
		"none":    {issuer.Token{}, issuer.ErrNoToken, "tokenRequests"},
		"expired": {issuer.NewToken("a.b.c", now.Add(-time.Second)), issuer.ErrNoToken, "tokenRequests"},
		"valid":   {issuer.NewToken("a.b.c", now.Add(time.Hour)), issuer.ErrUnavailable, "ra.invalid"},
	} {
		_, err := s.Sign(t.Context(), issuer.SigningRequest{Applicant: issuer.Applicant{Token: test.token}, CSR: csr})
		if !errors.Is(err, test.want) || !errors.Is(err, issuer.ErrUnavailable) || !strings.Contains(err.Error(), test.text) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Connect(t.Context()); !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("connect: %v", err)
	}
}
