package trust

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"
)

// State is the state of a Store, for the next process.
type State struct {
	// Anchor identifies the URL and the pins. A Store with others ignores the State.
	Anchor string `json:"anchor"`
	// Since is when the roots changed last.
	Since time.Time `json:"since"`
	// Roots are in DER.
	Roots [][]byte `json:"roots"`
}

// Store holds the roots that a peer is verified by: the pins, and the roots that the
// peer answered over verified connections. So the trust follows a rotation of the
// roots. It is safe for concurrent use.
type Store struct {
	pins   Pins
	anchor string // a hash of the URL and the pins

	mu     sync.Mutex
	pinned []*x509.Certificate // the certificates of the pins, as far as they are known
	roots  []*x509.Certificate // what the peer answered
	since  time.Time           // when roots changed last
}

// NewStore returns a Store with the pins for the peer at the URL.
func NewStore(url string, pins Pins) *Store {
	all := slices.Sorted(slices.Values(slices.Concat(pins.Fingerprints, Fingerprints(pins.Roots))))
	sum := sha256.Sum256([]byte(url + " " + strings.Join(all, " ")))
	return &Store{pins: pins, anchor: hex.EncodeToString(sum[:16]), pinned: slices.Clone(pins.Roots)}
}

// Pin adds those of the offered certificates that are pinned.
func (s *Store) Pin(offered []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = Union(s.pinned, s.pins.Among(offered))
}

// Trusted returns the roots that the peer is verified by. There are none while only
// fingerprints are known.
func (s *Store) Trusted() []*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Union(s.pinned, s.roots)
}

// Candidates returns the sets of roots to verify the peer by after it answered these
// roots. The first one that verifies the peer is for Follow: the first set lacks the
// roots that the peer no longer lists; the second includes them, in case they still
// sign the peer's own certificate.
func (s *Store) Candidates(answered []*x509.Certificate) [][]*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	without := Union(s.pinned, answered)
	return [][]*x509.Certificate{without, Union(without, s.roots)}
}

// Follow replaces the trusted roots. The caller has verified the peer by the new ones.
func (s *Store) Follow(trusted []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !Same(trusted, s.roots) {
		s.roots, s.since = trusted, time.Now()
	}
}

// State returns the state for the next process. It is the zero value if the peer has
// answered no roots yet.
func (s *Store) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.roots == nil {
		return State{}
	}
	state := State{Anchor: s.anchor, Since: s.since.UTC()}
	for _, root := range s.roots {
		state.Roots = append(state.Roots, root.Raw)
	}
	return state
}

// Restore restores the state of an earlier process, unless that had another
// configuration, or the state is older than this one.
func (s *Store) Restore(state State) {
	var roots []*x509.Certificate
	for _, der := range state.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		roots = append(roots, root)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if state.Anchor == s.anchor && state.Since.After(s.since) {
		s.roots, s.since = roots, state.Since
	}
}

// Unpinned returns the fingerprints of those roots that the configuration does not
// name.
func (s *Store) Unpinned(roots []*x509.Certificate) []string {
	pinned := slices.Concat(s.pins.Fingerprints, Fingerprints(s.pins.Roots))
	return slices.DeleteFunc(Fingerprints(roots), func(f string) bool { return slices.Contains(pinned, f) })
}
