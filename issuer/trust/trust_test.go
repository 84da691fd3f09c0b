package trust_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/issuer/trust"
)

const url = "https://ca.example.com"

func newRoot(t *testing.T) *x509.Certificate {
	t.Helper()
	ca, err := minica.New()
	if err != nil {
		t.Fatal(err)
	}
	return ca.Root
}

func pinned(t *testing.T, roots ...*x509.Certificate) *trust.Store {
	t.Helper()
	var fingerprints []string
	for _, root := range roots {
		fingerprints = append(fingerprints, trust.Fingerprint(root))
	}
	pins, err := trust.Parse(strings.Join(fingerprints, ", "), nil)
	if err != nil {
		t.Fatal(err)
	}
	return trust.NewStore(url, pins)
}

func expect(t *testing.T, what string, got []*x509.Certificate, want ...*x509.Certificate) {
	t.Helper()
	if !trust.Same(got, want) {
		t.Errorf("%s: %d certificates, which are not the %d expected ones", what, len(got), len(want))
	}
}

func TestOnlyPinnedRootsAreTrustedAtFirst(t *testing.T) {
	a, b, foreign := newRoot(t), newRoot(t), newRoot(t)
	s := pinned(t, a, b)
	expect(t, "at first", s.Trusted())
	s.Pin([]*x509.Certificate{foreign, b})
	expect(t, "offered", s.Trusted(), b)
	s.Pin([]*x509.Certificate{a})
	expect(t, "both", s.Trusted(), a, b)
	if got := s.Unpinned([]*x509.Certificate{a, foreign}); len(got) != 1 || got[0] != trust.Fingerprint(foreign) {
		t.Errorf("unpinned: %q", got)
	}
}

func TestTrustFollows(t *testing.T) {
	a, b, c := newRoot(t), newRoot(t), newRoot(t)
	s := pinned(t, a)
	s.Pin([]*x509.Certificate{a})
	s.Follow([]*x509.Certificate{a, b})
	candidates := s.Candidates([]*x509.Certificate{c})
	expect(t, "without what is gone", candidates[0], a, c)
	expect(t, "with it", candidates[1], a, b, c)
	s.Follow(candidates[0])
	expect(t, "after that", s.Trusted(), a, c)
}

func TestTheNextProcessRestoresTheState(t *testing.T) {
	a, b := newRoot(t), newRoot(t)
	first := pinned(t, a)
	if l := first.State(); len(l.Roots) > 0 {
		t.Errorf("the state of a new store has %d roots", len(l.Roots))
	}
	first.Follow([]*x509.Certificate{a})
	early := first.State()
	time.Sleep(time.Millisecond)
	first.Follow([]*x509.Certificate{b})
	late := first.State()

	next := pinned(t, a)
	next.Restore(late)
	next.Restore(early)
	expect(t, "the newest", next.Trusted(), b)
	if l := next.State(); !l.Since.Equal(late.Since) || l.Anchor != late.Anchor {
		t.Errorf("since %v, want %v", l.Since, late.Since)
	}

	other := pinned(t, a, b)
	other.Restore(late)
	expect(t, "under another configuration", other.Trusted())
	pins, _ := trust.Parse(trust.Fingerprint(a), nil)
	elsewhere := trust.NewStore("https://other.example.com", pins)
	elsewhere.Restore(late)
	expect(t, "for another peer", elsewhere.Trusted())
	damaged := pinned(t, a)
	late.Roots[0] = late.Roots[0][1:]
	damaged.Restore(late)
	expect(t, "damaged", damaged.Trusted())
}

func TestParseFingerprints(t *testing.T) {
	a, b := strings.Repeat("ab", 32), strings.Repeat("AB:", 31)+"CD"
	pins, err := trust.Parse(a+", "+b, nil)
	if err != nil || len(pins.Fingerprints) != 2 || pins.Fingerprints[1] != strings.Repeat("ab", 31)+"cd" {
		t.Errorf("%q, %v", pins.Fingerprints, err)
	}
	for _, text := range []string{a + ",", a + a, a + ", sha256", ","} {
		if _, err := trust.Parse(text, nil); err == nil || !strings.HasPrefix(err.Error(), "fingerprint: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
