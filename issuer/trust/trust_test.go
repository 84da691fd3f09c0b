package trust_test

import (
	"crypto/x509"
	"slices"
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
	s.Follow([]*x509.Certificate{a, b}, time.Now())
	candidates := s.Candidates([]*x509.Certificate{c})
	expect(t, "without what is gone", candidates[0], a, c)
	expect(t, "with it", candidates[1], a, b, c)
	asked := time.Now()
	s.Follow(candidates[0], asked)
	expect(t, "after that", s.Trusted(), a, c)
	s.Follow([]*x509.Certificate{a, b}, asked.Add(-time.Second))
	expect(t, "after older roots", s.Trusted(), a, c)
}

// With roots.pinned, an answer can narrow the trust and never widen it, with a bundle as
// well as with fingerprints.
func TestPinnedRootsAreNeverWidened(t *testing.T) {
	a, b, foreign := newRoot(t), newRoot(t), newRoot(t)
	for name, pins := range map[string]trust.Pins{
		"fingerprints": {Fingerprints: []string{trust.Fingerprint(a), trust.Fingerprint(b)}, Only: true},
		"bundle":       {Roots: []*x509.Certificate{a, b}, Only: true},
	} {
		accepted, ignored := pins.Accept([]*x509.Certificate{foreign, b})
		expect(t, name+": accepted", accepted, b)
		expect(t, name+": ignored", ignored, foreign)
		s := trust.NewStore(url, pins)
		s.Pin([]*x509.Certificate{a, foreign})
		for _, trusted := range s.Candidates([]*x509.Certificate{b, foreign}) {
			expect(t, name+": a candidate", trusted, a, b)
			s.Follow(trusted, time.Now())
		}
		expect(t, name+": trusted", s.Trusted(), a, b)

		if state := s.State(); len(state.Roots) > 0 {
			t.Errorf("%s: %d roots for the next process", name, len(state.Roots))
		}
		open := pins
		open.Only = false
		learned := trust.NewStore(url, open)
		learned.Follow([]*x509.Certificate{foreign}, time.Now())
		if err := s.Restore(learned.State()); err == nil {
			t.Errorf("%s: the learned roots of an earlier process are restored", name)
		}
		expect(t, name+": after Restore", s.Trusted(), a, b)
	}
}

func TestTheNextProcessRestoresTheState(t *testing.T) {
	a, b := newRoot(t), newRoot(t)
	first := pinned(t, a)
	if l := first.State(); len(l.Roots) > 0 {
		t.Errorf("the state of a new store has %d roots", len(l.Roots))
	}
	first.Follow([]*x509.Certificate{a}, time.Now().Add(-time.Minute))
	early := first.State()
	first.Follow([]*x509.Certificate{b}, time.Now())
	late := first.State()

	next := pinned(t, a)
	for _, state := range []trust.State{late, early} {
		if err := next.Restore(state); err != nil {
			t.Error(err)
		}
	}
	expect(t, "the newest", next.Trusted(), b)
	if l := next.State(); !l.Since.Equal(late.Since) || l.Anchor != late.Anchor {
		t.Errorf("since %v, want %v", l.Since, late.Since)
	}
	next.Follow([]*x509.Certificate{a}, late.Since.Add(-time.Second))
	expect(t, "after older roots", next.Trusted(), b)
}

func TestWrongStatesAreNotRestored(t *testing.T) {
	a, b := newRoot(t), newRoot(t)
	first := pinned(t, a)
	first.Follow([]*x509.Certificate{b}, time.Now())
	pins, err := trust.Parse(trust.Fingerprint(a), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		store *trust.Store
		spoil func(*trust.State)
		want  string
	}{
		"other pins":      {pinned(t, a, b), func(*trust.State) {}, "another url, fingerprint"},
		"another peer":    {trust.NewStore("https://other.example.com", pins), func(*trust.State) {}, "another url, fingerprint"},
		"damaged":         {pinned(t, a), func(s *trust.State) { s.Roots[0] = s.Roots[0][1:] }, "x509"},
		"no roots":        {pinned(t, a), func(s *trust.State) { s.Roots = nil }, "none"},
		"from the future": {pinned(t, a), func(s *trust.State) { s.Since = time.Now().Add(time.Hour) }, "future"},
	} {
		state := first.State()
		test.spoil(&state)
		if err := test.store.Restore(state); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, test.want)
		}
		expect(t, name, test.store.Trusted())
	}
}

// Sets of certificates are the same whatever their order and number.
func TestSetsOfCertificates(t *testing.T) {
	a, b, c := newRoot(t), newRoot(t), newRoot(t)
	type set = []*x509.Certificate
	for _, same := range [][2]set{{nil, {}}, {{a, b}, {b, a}}, {{a, a, b}, {b, b, a}}, {{a}, {a, a}}} {
		if !trust.Same(same[0], same[1]) || !slices.EqualFunc(trust.Sorted(same[0]), trust.Sorted(same[1]), (*x509.Certificate).Equal) {
			t.Errorf("%d and %d certificates are not the same set", len(same[0]), len(same[1]))
		}
	}
	for _, other := range [][2]set{{nil, {a}}, {{a, b}, {a, a}}, {{a, a}, {a, b}}, {{a, b}, {a, c}}, {{a}, {a, b}}} {
		if trust.Same(other[0], other[1]) {
			t.Errorf("%d and %d certificates are the same set", len(other[0]), len(other[1]))
		}
	}
	if all := trust.Union(set{a, a}, set{a, b}); len(all) != 2 {
		t.Errorf("the union of two certificates has %d", len(all))
	}
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
