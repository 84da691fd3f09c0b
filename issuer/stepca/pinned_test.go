package stepca_test

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smallstep/certificates/api"
	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/embeddedca"
)

// hostileCA is a step-ca that answers other roots than its own, and then signs under the
// root of an attacker.
type hostileCA struct {
	*embeddedca.CA
	attacker       *minica.CA
	own, federated atomic.Pointer[[]*x509.Certificate]
	signs          atomic.Bool // under the attacker's root
}

func startHostileCA(t *testing.T) *hostileCA {
	t.Helper()
	attacker, err := minica.New(minica.WithName("Attacker"))
	if err != nil {
		t.Fatal(err)
	}
	h := &hostileCA{CA: startCA(t), attacker: attacker}
	h.own.Store(&[]*x509.Certificate{h.Root()})
	h.federated.Store(&[]*x509.Certificate{})
	h.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, "/roots"):
				answer(w, &api.RootsResponse{Certificates: wrapped(*h.own.Load())})
			case strings.HasSuffix(r.URL.Path, "/federation"):
				answer(w, &api.FederationResponse{Certificates: wrapped(*h.federated.Load())})
			case strings.HasSuffix(r.URL.Path, "/sign") && h.signs.Load():
				h.sign(t, w, r)
			default:
				next.ServeHTTP(w, r)
			}
		})
	})
	return h
}

func (h *hostileCA) sign(t *testing.T, w http.ResponseWriter, r *http.Request) {
	var body api.SignRequest
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		t.Error(err)
		return
	}
	csr := body.CsrPEM.CertificateRequest
	leaf, err := h.attacker.Sign(&x509.Certificate{
		Subject: csr.Subject, DNSNames: csr.DNSNames, URIs: csr.URIs, PublicKey: csr.PublicKey,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute), KeyUsage: x509.KeyUsageDigitalSignature,
	})
	if err != nil {
		t.Error(err)
		return
	}
	chain := wrapped([]*x509.Certificate{leaf, h.attacker.Intermediate})
	answer(w, &api.SignResponse{ServerPEM: chain[0], CaPEM: chain[1], CertChainPEM: chain})
}

func answer(w http.ResponseWriter, body any) {
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(body)
}

func wrapped(certificates []*x509.Certificate) (all []api.Certificate) {
	for _, certificate := range certificates {
		all = append(all, api.NewCertificate(certificate))
	}
	return all
}

// A hostile CA that is believed makes the signer trust the attacker's root everywhere.
// With roots.pinned, it cannot.
func TestPinnedRootsAreNotWidened(t *testing.T) {
	for name, test := range map[string]struct {
		pinned bool
		bundle bool
	}{
		"believed":                {},
		"pinned by a fingerprint": {pinned: true},
		"pinned by a bundle":      {pinned: true, bundle: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := startHostileCA(t)
			c := configFor(h.CA)
			c.Pinned, c.Federation = test.pinned, true
			if test.bundle {
				c.Fingerprint, c.CABundle = "", h.RootPEM()
			}
			s := newSigner(t, c)
			i := newIssuer(t, s)
			if _, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); err != nil {
				t.Fatal(err)
			}
			h.own.Store(&[]*x509.Certificate{h.attacker.Root, h.Root()})
			h.federated.Store(&[]*x509.Certificate{h.attacker.Root})
			roots, err := s.RefreshRoots(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := []*x509.Certificate{h.Root()}
			if !test.pinned {
				want = append(want, h.attacker.Root)
			}
			if !trust.Same(roots.All(), want) || !trust.Same(s.Trust().Trusted(), want) || len(roots.Ignored) != 2 && test.pinned {
				t.Errorf("%d roots for pods, %d for the CA's server, want %d; %d ignored",
					len(roots.All()), len(s.Trust().Trusted()), len(want), len(roots.Ignored))
			}
			h.signs.Store(true)
			_, err = i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
			if test.pinned && issuer.OutcomeOf(err) != issuer.InvalidAnswer || !test.pinned && err != nil {
				t.Errorf("a certificate under the attacker's root: %v", err)
			}
		})
	}
}

// An answer without any pinned root is an error. The signer keeps the roots that it has,
// and does not start without any.
func TestAnswerWithoutPinnedRoots(t *testing.T) {
	h := startHostileCA(t)
	c := configFor(h.CA)
	c.Pinned = true
	s := newSigner(t, c)
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.own.Store(&[]*x509.Certificate{h.attacker.Root})
	for name, refresh := range map[string]*stepca.Signer{"connected": s, "not connected": newSigner(t, c)} {
		_, err := refresh.RefreshRoots(t.Context())
		if !errors.Is(err, issuer.InvalidAnswer) || !strings.Contains(err.Error(), h.URL()) || !strings.Contains(err.Error(), trust.Fingerprint(h.attacker.Root)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := []*x509.Certificate{h.Root()}
	if roots, err := s.Roots(t.Context()); err != nil || !trust.Same(roots.All(), want) || !trust.Same(s.Trust().Trusted(), want) {
		t.Errorf("the signer has %d roots, and trusts %d: %v", len(roots.All()), len(s.Trust().Trusted()), err)
	}
}

// A federated root that is pinned reaches pods, and does not verify what the CA signs.
func TestPinnedFederatedRoot(t *testing.T) {
	h := startHostileCA(t)
	c := configFor(h.CA)
	c.Pinned, c.Federation = true, true
	c.Fingerprint += "," + trust.Fingerprint(h.attacker.Root)
	h.federated.Store(&[]*x509.Certificate{h.attacker.Root})
	s := newSigner(t, c)
	roots, err := s.RefreshRoots(t.Context())
	if err != nil || !trust.Same(roots.Federated, []*x509.Certificate{h.attacker.Root}) || !trust.Same(roots.Own, []*x509.Certificate{h.Root()}) {
		t.Errorf("%d own and %d federated roots: %v", len(roots.Own), len(roots.Federated), err)
	}
	h.signs.Store(true)
	if _, err := newIssuer(t, s).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); issuer.OutcomeOf(err) != issuer.InvalidAnswer {
		t.Errorf("a certificate under the federated root: %v", err)
	}
}
