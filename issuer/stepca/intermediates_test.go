package stepca_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/issuer"
)

// The CA says what it signs with, and never gets a signing request for that. Whatever else it
// answers is an error at most.
func TestIntermediates(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	if got, err := s.Intermediates(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("before the first connection: %d, %v", len(got), err)
	}
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	chain, err := s.Sign(t.Context(), signingRequest(t))
	if err != nil {
		t.Fatal(err)
	}
	intermediate := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[1].Raw}))
	signs := ca.Signs()
	for name, test := range map[string]struct {
		status int
		body   string
		want   bool
	}{
		"step-ca":           {http.StatusCreated, fmt.Sprintf(`{"crts": [%q]}`, intermediate), true},
		"an earlier one":    {http.StatusNotFound, "404 page not found\n", false},
		"another CA behind": {http.StatusNotImplemented, `{"status": 501, "message": "not implemented"}`, false},
		"a redirection":     {http.StatusFound, "", false},
		"nothing":           {http.StatusCreated, `{"crts": []}`, false},
		"null":              {http.StatusCreated, `{"crts": [null]}`, false},
		"an empty text":     {http.StatusCreated, `{"crts": [""]}`, false},
		"nonsense":          {http.StatusCreated, `{"crts": ["x"]}`, false},
		"a page":            {http.StatusOK, "<html>", false},
		"too long":          {http.StatusCreated, `{"crts": ["` + strings.Repeat("x", 20<<20), false},
	} {
		ca.Intercept(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/intermediates" || r.Method != http.MethodGet {
					t.Errorf("%s %s", r.Method, r.URL)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.body))
			})
		})
		got, err := s.Intermediates(t.Context())
		if (err == nil) != test.want || test.want && (len(got) != 1 || !got[0].Equal(chain[1])) {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
		}
	}
	if n := ca.Signs() - signs; n != 0 {
		t.Errorf("%d signing requests", n)
	}
}

// The error about the CA's server names the certificate that has expired.
func TestExpiredServerIsNamed(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	s := newSigner(t, configFor(ca))
	ca.Stop()
	if err := ca.ResumeExpired(); err != nil {
		t.Fatal(err)
	}
	err := s.Connect(t.Context())
	if !errors.Is(err, issuer.Unavailable) || !strings.Contains(fmt.Sprint(err), "which the CA's server uses, is valid from ") ||
		!strings.Contains(fmt.Sprint(err), "(serial number ") {
		t.Error(err)
	}
}
