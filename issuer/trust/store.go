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

// Learnt are the roots that an authority was verified by, for the process that
// comes after this one.
type Learnt struct {
	// Anchor stands for what the administrator has configured. What was learnt
	// under another configuration is not trusted.
	Anchor string `json:"anchor"`
	// Since is when the roots were last other ones.
	Since time.Time `json:"since"`
	// Roots are in DER.
	Roots [][]byte `json:"roots"`
}

// Store holds what an authority is verified by: the pins, and the roots that it
// has answered since over connections that were verified. So the trust follows a
// rotation of the roots. It is safe for concurrent use.
type Store struct {
	pins   Pins
	anchor string

	mu     sync.Mutex
	pinned []*x509.Certificate // the pins, as far as the certificates are known
	roots  []*x509.Certificate // what was learnt
	since  time.Time
}

// NewStore knows nothing but the pins of the authority at the URL.
func NewStore(url string, pins Pins) *Store {
	return &Store{pins: pins, anchor: anchor(url, pins), pinned: slices.Clone(pins.Roots)}
}

func anchor(url string, pins Pins) string {
	all := slices.Clone(pins.Fingerprints)
	for _, root := range pins.Roots {
		all = append(all, Fingerprint(root))
	}
	slices.Sort(all)
	sum := sha256.Sum256([]byte(url + " " + strings.Join(all, " ")))
	return hex.EncodeToString(sum[:16])
}

// Pin takes those of the offered certificates that are pinned.
func (s *Store) Pin(offered []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = Union(s.pinned, s.pins.Among(offered))
}

// Trusted is what the authority is verified by; nothing, if only fingerprints are
// known.
func (s *Store) Trusted() []*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Union(s.pinned, s.roots)
}

// Candidates are what to verify an authority by that has answered these roots,
// the better first: without the roots that it lists no more; then with them, for
// one whose own certificate still comes from such a root.
func (s *Store) Candidates(answered []*x509.Certificate) [][]*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	without := Union(s.pinned, answered)
	return [][]*x509.Certificate{without, Union(without, s.roots)}
}

// Follow makes the certificates what is trusted from now on. They were seen to
// verify the authority.
func (s *Store) Follow(trusted []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !Same(trusted, s.roots) {
		s.roots, s.since = trusted, time.Now()
	}
}

// Learnt is for the next process; the zero value if nothing was learnt.
func (s *Store) Learnt() Learnt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.roots == nil {
		return Learnt{}
	}
	l := Learnt{Anchor: s.anchor, Since: s.since.UTC()}
	for _, root := range s.roots {
		l.Roots = append(l.Roots, root.Raw)
	}
	return l
}

// Learn takes what an earlier process has learnt, if that was under the same
// configuration and is newer than what is known.
func (s *Store) Learn(l Learnt) {
	var roots []*x509.Certificate
	for _, der := range l.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		roots = append(roots, root)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.Anchor == s.anchor && l.Since.After(s.since) {
		s.roots, s.since = roots, l.Since
	}
}

// Unpinned are the fingerprints of the roots that the configuration does not
// name.
func (s *Store) Unpinned(roots []*x509.Certificate) (fingerprints []string) {
	for _, root := range roots {
		if !slices.Contains(s.pins.Fingerprints, Fingerprint(root)) && !slices.ContainsFunc(s.pins.Roots, root.Equal) {
			fingerprints = append(fingerprints, Fingerprint(root))
		}
	}
	return fingerprints
}
