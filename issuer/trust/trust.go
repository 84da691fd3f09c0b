// Package trust holds the roots by which a CA or a registration authority is verified:
// at first the pins, which the administrator configures, and then also the roots that
// the peer answered over a verified connection. There is no trust on first use.
package trust

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.step.sm/crypto/pemutil"

	"github.com/flexstack/step-csi/issuer/chartvalue"
	"github.com/flexstack/step-csi/issuer/clock"
)

// Pins are the roots that the administrator configures: the certificates or their
// fingerprints.
type Pins struct {
	Roots []*x509.Certificate
	// Fingerprints are the SHA-256 of roots, in lower-case hexadecimal.
	Fingerprints []string
	// Only means that no other root is ever trusted, whatever the peer answers
	// (roots.pinned).
	Only bool
}

// Parse parses either fingerprints in hexadecimal, separated by commas, or a bundle of
// roots in PEM. Its errors begin with the key in the configuration.
func Parse(fingerprints string, bundle []byte) (Pins, error) {
	switch {
	case fingerprints == "" && len(bundle) == 0:
		return Pins{}, errors.New("fingerprint: set the fingerprint of the CA's root (step certificate fingerprint root_ca.crt), or " + chartvalue.Beside("caBundleFile"))
	case fingerprints != "" && len(bundle) > 0:
		return Pins{}, errors.New("fingerprint: " + chartvalue.Beside("caBundleFile") + " is set, too; set one of them")
	case fingerprints != "":
		return parseFingerprints(fingerprints)
	}
	roots, err := ParseBundle(bundle)
	if err != nil {
		return Pins{}, fmt.Errorf("%s: %w", chartvalue.Beside("caBundleFile"), err)
	}
	return Pins{Roots: roots}, nil
}

// ParseBundle parses roots in PEM. Other blocks, and damaged ones, are an error: a root
// would be missing.
func ParseBundle(bundle []byte) ([]*x509.Certificate, error) {
	const begin = "-----BEGIN "
	if !bytes.Contains(bundle, []byte(begin)) {
		return nil, errors.New("it has no certificate in PEM; put the CA's root certificates there, each of which begins with -----BEGIN CERTIFICATE-----")
	}
	roots, err := pemutil.ParseCertificateBundle(bundle)
	if err != nil {
		return nil, fmt.Errorf("a certificate in it cannot be read: %w", err)
	}
	// The parser skips what it does not know, and ends at the first block that is damaged.
	if blocks := bytes.Count(bundle, []byte(begin)); blocks > len(roots) {
		return nil, fmt.Errorf("of its %d PEM blocks, %d can be read as certificates; it may have nothing but whole blocks of the type CERTIFICATE", blocks, len(roots))
	}
	return roots, nil
}

func parseFingerprints(list string) (Pins, error) {
	var p Pins
	for text := range strings.SplitSeq(list, ",") {
		// openssl x509 -fingerprint prints "sha256 Fingerprint=84:A0:…".
		_, digits, named := strings.Cut(text, "=")
		if !named {
			digits = text
		}
		digits = strings.ToLower(strings.NewReplacer(":", "", "-", "").Replace(strings.Join(strings.Fields(digits), "")))
		if b, err := hex.DecodeString(digits); err != nil || len(b) != sha256.Size {
			return Pins{}, fmt.Errorf("fingerprint: %q is not a SHA-256 in hexadecimal (64 digits)", strings.TrimSpace(text))
		}
		p.Fingerprints = append(p.Fingerprints, digits)
	}
	return p, nil
}

// Among returns the pinned roots: the configured certificates, or those of the offered
// certificates that have one of the fingerprints. It returns none for another peer.
func (p Pins) Among(offered []*x509.Certificate) []*x509.Certificate {
	if p.Fingerprints == nil {
		return p.Roots
	}
	return slices.DeleteFunc(slices.Clone(offered), func(certificate *x509.Certificate) bool {
		return !slices.Contains(p.Fingerprints, Fingerprint(certificate))
	})
}

// Accept returns those of the answered roots that may be trusted, and the others: all
// roots may, unless only the pinned ones do.
func (p Pins) Accept(answered []*x509.Certificate) (accepted, ignored []*x509.Certificate) {
	if !p.Only {
		return answered, nil
	}
	for _, root := range answered {
		if p.has(root) {
			accepted = append(accepted, root)
		} else {
			ignored = append(ignored, root)
		}
	}
	return accepted, ignored
}

func (p Pins) has(root *x509.Certificate) bool {
	return slices.Contains(p.Fingerprints, Fingerprint(root)) || slices.ContainsFunc(p.Roots, root.Equal)
}

// State is the state of a Store, for the next process.
type State struct {
	// Anchor identifies the URL and the pins. A Store with others rejects the State.
	Anchor string `json:"anchor"`
	// Since is when the peer was asked for the roots, when they changed last.
	Since time.Time `json:"since"`
	// Roots are in DER.
	Roots [][]byte `json:"roots"`
}

// Store holds the roots that a peer is verified by: the pins, and the roots that the
// peer answered over verified connections, so that the trust follows a rotation of the
// roots. It is safe for concurrent use.
type Store struct {
	pins   Pins
	anchor string // a hash of the URL and the pins

	mu     sync.Mutex
	pinned []*x509.Certificate // the certificates of the pins, as far as they are known
	roots  []*x509.Certificate // what the peer answered
	since  time.Time           // when the peer was asked for roots, when they changed last
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
// sign the peer's own certificate. If only the pins are trusted, no set has other roots.
func (s *Store) Candidates(answered []*x509.Certificate) [][]*x509.Certificate {
	accepted, _ := s.pins.Accept(answered)
	s.mu.Lock()
	defer s.mu.Unlock()
	without := Union(s.pinned, accepted)
	return [][]*x509.Certificate{without, Union(without, s.roots)}
}

// Follow replaces the trusted roots by those that the peer was asked for at that time,
// unless it knows newer ones. The caller has verified the peer by them.
func (s *Store) Follow(trusted []*x509.Certificate, asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A restored time can be in the future only if the clock was set back.
	older := asked.Before(s.since) && !s.since.After(time.Now())
	if !older && !Same(trusted, s.roots) {
		s.roots, s.since = trusted, asked
	}
}

// State returns the state for the next process. It is the zero value if the peer has
// answered no roots yet, or if only the pins are trusted.
func (s *Store) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.roots == nil || s.pins.Only {
		return State{}
	}
	state := State{Anchor: s.anchor, Since: s.since.UTC()}
	for _, root := range s.roots {
		state.Roots = append(state.Roots, root.Raw)
	}
	return state
}

// Restore restores the state of an earlier process. It returns an error, and changes
// nothing, if that process had another configuration, if the state is damaged or from
// the future, or if only the pins are trusted.
func (s *Store) Restore(state State) error {
	switch {
	case s.pins.Only:
		return errors.New("only the configured roots are trusted (roots.pinned)")
	case state.Anchor != s.anchor:
		return errors.New("they belong to another url, fingerprint or " + chartvalue.Beside("caBundleFile"))
	case state.Since.After(time.Now().Add(clock.Tolerance)):
		return fmt.Errorf("they are from the future, %s; check the clock of the node", state.Since.Format(time.RFC3339))
	case len(state.Roots) == 0:
		return errors.New("there are none")
	}
	var roots []*x509.Certificate
	for _, der := range state.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		roots = append(roots, root)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if state.Since.After(s.since) {
		s.roots, s.since = roots, state.Since
	}
	return nil
}

// Unpinned returns the fingerprints of those roots that the configuration does not
// name, unless only the pins are trusted.
func (s *Store) Unpinned(roots []*x509.Certificate) []string {
	if s.pins.Only {
		return nil
	}
	return Fingerprints(slices.DeleteFunc(slices.Clone(roots), s.pins.has))
}

// Fingerprint is the SHA-256 of a certificate, as step certificate fingerprint
// prints it.
func Fingerprint(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// Fingerprints returns the fingerprint of each certificate.
func Fingerprints(certificates []*x509.Certificate) (all []string) {
	for _, certificate := range certificates {
		all = append(all, Fingerprint(certificate))
	}
	return all
}

// Union returns the certificates of both, without duplicates. Their number is up to the CA.
func Union(a, b []*x509.Certificate) (all []*x509.Certificate) {
	seen := make(map[string]bool, len(a)+len(b))
	for _, certificate := range slices.Concat(a, b) {
		if !seen[string(certificate.Raw)] {
			seen[string(certificate.Raw)] = true
			all = append(all, certificate)
		}
	}
	return all
}

// Same tells whether both have the same certificates, in any order and any number.
func Same(a, b []*x509.Certificate) bool {
	if slices.Equal(a, b) { // the same pointers, as usual: nothing has to be hashed
		return true
	}
	all := len(Union(a, b))
	return all == len(Union(a, nil)) && all == len(Union(b, nil))
}

// Sorted returns the certificates without duplicates, in an order that depends on nothing
// but the certificates: the oldest comes first, so that a new root comes last.
func Sorted(certificates []*x509.Certificate) []*x509.Certificate {
	return slices.SortedFunc(slices.Values(Union(certificates, nil)), func(a, b *x509.Certificate) int {
		return cmp.Or(a.NotBefore.Compare(b.NotBefore), bytes.Compare(a.Raw, b.Raw))
	})
}

// Unexpired returns the certificates that have not expired at that time. Those that are
// not valid yet are among them.
func Unexpired(certificates []*x509.Certificate, now time.Time) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certificates), func(certificate *x509.Certificate) bool { return now.After(certificate.NotAfter) })
}

// Pool returns the certificates as crypto/x509 needs them.
func Pool(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool
}
