package stepca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/trust"
)

const (
	// A URL that failed is tried after the others for this time. It doubles with each
	// failure, until the URL signs again.
	firstSetback = 10 * time.Second
	maxSetback   = 5 * time.Minute
	// failoverDialTimeout bounds how long a new connection to one of several URLs may
	// take to open. A host that is switched off does not answer at all.
	failoverDialTimeout = 5 * time.Second
)

// Failover is an issuer.Signer for a CA that runs as several instances with a URL each.
// It has a Signer for each URL, and to its caller it is one issuer.
//
// A call goes to the URL that worked last. If that is unavailable, the call goes on to
// the next URL, while its context lasts, with a token of its own for each. Since a URL
// that breaks the connection, or that answers with an error of the server, may have
// signed before, the CA may issue a certificate that no pod receives; a Signer's own retry
// does so, too. RefreshRoots returns to the first URL that is not known to fail, so that
// no pod waits for that attempt.
type Failover struct {
	signers []*Signer // in the order of the configuration

	mu    sync.Mutex
	state []urlState // of each signer
	inUse int        // the signer of the last call that did not fail
	roots issuer.Roots
}

// urlState is what Failover knows about one URL.
type urlState struct {
	backoff  backoff.Backoff
	until    time.Time // when the URL is no longer tried after the others
	failures uint64
	failing  bool
}

var (
	_ issuer.Signer           = (*Failover)(nil)
	_ issuer.Revoker          = (*Failover)(nil)
	_ issuer.HolderRenewal    = (*Failover)(nil)
	_ issuer.LifetimeClaims   = (*Failover)(nil)
	_ issuer.TokenCertificate = (*Failover)(nil)
	_ issuer.Clock            = (*Failover)(nil)
	_ issuer.Intermediates    = (*Failover)(nil)
)

// NewFailover checks the configuration. It does not call the CA. The URLs are instead of
// that in c, in the order of preference.
func NewFailover(c Config, urls []string) (*Failover, error) {
	f := &Failover{}
	var known []string
	for _, text := range urls {
		u, err := trust.ParseURL(text)
		if err != nil {
			return nil, fmt.Errorf("urls: %w", err)
		}
		if slices.Contains(known, u.String()) {
			return nil, fmt.Errorf("urls: %s is in the list twice", u)
		}
		known = append(known, u.String())
		c.URL = u.String()
		s, err := New(c)
		if err != nil {
			return nil, err
		}
		s.dialTimeout = failoverDialTimeout
		f.signers = append(f.signers, s)
		f.state = append(f.state, urlState{backoff: backoff.Backoff{First: firstSetback, Max: maxSetback}})
	}
	if len(f.signers) == 0 {
		return nil, errors.New("urls: list at least one URL of the CA")
	}
	for _, s := range f.signers {
		s.trust = f.signers[0].trust // it is one CA
	}
	return f, nil
}

// URLState is the state of one URL, for metrics.
type URLState struct {
	URL      string
	InUse    bool   // the next call goes to this URL first, unless it is known to fail
	Failures uint64 // calls that found the URL unavailable
}

// URLs returns the state of all URLs, in the order of the configuration.
func (f *Failover) URLs() []URLState {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]URLState, len(f.signers))
	for i, s := range f.signers {
		all[i] = URLState{URL: s.url.String(), InUse: i == f.inUse, Failures: f.state[i].failures}
	}
	return all
}

// Connect implements issuer.Signer.
func (f *Failover) Connect(ctx context.Context) error {
	return f.call(ctx, lastUsed, func(s *Signer) error { return s.Connect(ctx) })
}

// Close closes the connections to all URLs. A later call opens one again.
func (f *Failover) Close() {
	for _, s := range f.signers {
		s.Close()
	}
}

// Sign implements issuer.Signer.
func (f *Failover) Sign(ctx context.Context, req issuer.SigningRequest) (chain []*x509.Certificate, err error) {
	err = f.call(ctx, signing, func(s *Signer) error {
		chain, err = s.Sign(ctx, req)
		return err
	})
	return chain, err
}

// Revoke implements issuer.Revoker.
func (f *Failover) Revoke(ctx context.Context, r issuer.Revocation) error {
	return f.call(ctx, lastUsed, func(s *Signer) error { return s.Revoke(ctx, r) })
}

// HolderRenewal implements issuer.HolderRenewal.
func (f *Failover) HolderRenewal(ctx context.Context, maxAge time.Duration) (allowed string, err error) {
	err = f.call(ctx, lastUsed, func(s *Signer) error {
		allowed, err = s.HolderRenewal(ctx, maxAge)
		return err
	})
	return allowed, err
}

// Intermediates implements issuer.Intermediates, by the URL that worked last.
func (f *Failover) Intermediates(ctx context.Context) ([]*x509.Certificate, error) {
	return f.current().Intermediates(ctx)
}

// LifetimeClaims implements issuer.LifetimeClaims, by the URL that worked last.
func (f *Failover) LifetimeClaims() *issuer.ProvisionerClaims { return f.current().LifetimeClaims() }

// TokenCertificate implements issuer.TokenCertificate, by the URL that worked last.
func (f *Failover) TokenCertificate() (issued, expires time.Time) {
	return f.current().TokenCertificate()
}

// CompareClocks implements issuer.Clock, by the URL that worked last.
func (f *Failover) CompareClocks() string { return f.current().CompareClocks() }

func (f *Failover) current() *Signer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.signers[f.inUse]
}

// Roots implements issuer.Signer.
func (f *Failover) Roots(ctx context.Context) (roots issuer.Roots, err error) {
	err = f.call(ctx, lastUsed, func(s *Signer) error {
		roots, err = s.Roots(ctx)
		return err
	})
	return f.newest(roots, err)
}

// RefreshRoots implements issuer.Signer.
func (f *Failover) RefreshRoots(ctx context.Context) (roots issuer.Roots, err error) {
	err = f.call(ctx, configured, func(s *Signer) error {
		roots, err = s.RefreshRoots(ctx)
		return err
	})
	return f.newest(roots, err)
}

// newest returns the roots, or newer ones that another URL answered before.
func (f *Failover) newest(roots issuer.Roots, err error) (issuer.Roots, error) {
	if err != nil {
		return issuer.Roots{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !roots.Asked.Before(f.roots.Asked) {
		f.roots = roots
	}
	return f.roots, nil
}

// Trust implements issuer.Signer.
func (f *Failover) Trust() *trust.Store { return f.signers[0].trust }

// kind is the kind of a call: which URL is first, and what its success proves.
type kind int

const (
	lastUsed   kind = iota // the URL that worked last is first
	configured             // the first URL of the configuration is first
	signing                // like lastUsed; a success also ends the backoff of the URL
)

// call calls do with the signer of one URL after the other, until one is not unavailable.
// If all are, the error names all of them.
func (f *Failover) call(ctx context.Context, k kind, do func(*Signer) error) error {
	var unavailable []error
	for _, i := range f.order(k, time.Now()) {
		f.signers[i].forgetOldTrust()
		err := do(f.signers[i])
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return err
		case issuer.OutcomeOf(err) != issuer.Unavailable:
			f.worked(ctx, k, i)
			return err
		}
		f.failed(ctx, i, err)
		if unavailable = append(unavailable, err); ctx.Err() != nil {
			break
		}
	}
	return joined(unavailable)
}

// order returns the signers in the order in which a call tries them.
func (f *Failover) order(k kind, now time.Time) []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	order := make([]int, len(f.signers))
	for i := range order {
		order[i] = i
	}
	if k != configured {
		order = slices.Insert(slices.Delete(order, f.inUse, f.inUse+1), 0, f.inUse)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return f.state[a].setback(now).Compare(f.state[b].setback(now))
	})
	return order
}

// setback returns until when the URL is tried after the others; zero if it is not.
func (s urlState) setback(now time.Time) time.Time {
	if s.until.After(now) {
		return s.until
	}
	return time.Time{}
}

// worked makes later calls go to this URL first.
func (f *Failover) worked(ctx context.Context, k kind, i int) {
	f.mu.Lock()
	before := f.inUse
	f.inUse = i
	state := &f.state[i]
	state.until, state.failing = time.Time{}, false
	if k == signing {
		state.backoff.Reset()
	}
	f.mu.Unlock()
	if before != i {
		klog.FromContext(ctx).Info("Using another URL of the CA", "url", f.signers[i].url.String(), "before", f.signers[before].url.String())
	}
}

// failed makes later calls try this URL after the others. Of calls that fail at the same
// time, only the first one counts.
func (f *Failover) failed(ctx context.Context, i int, err error) {
	now := time.Now()
	f.mu.Lock()
	state := &f.state[i]
	first := !state.failing
	state.failures++
	state.failing = true
	if !state.until.After(now) {
		state.until = now.Add(state.backoff.Next())
	}
	f.mu.Unlock()
	if first { // the caller logs when all URLs fail
		klog.FromContext(ctx).Info("URL of the CA failed; other URLs are tried before it", "url", f.signers[i].url.String(), "reason", err.Error())
	}
}

// forgetOldTrust forgets a connection that other roots verify than those of today. Another
// URL has answered these roots since.
func (s *Signer) forgetOldTrust() {
	c := s.connection.Load()
	if c != nil && s.config.ServerRoots == nil && !trust.Same(c.trusted, s.trust.Trusted()) && s.connection.CompareAndSwap(c, nil) {
		c.transport.CloseIdleConnections()
	}
}

// joined returns an error with the texts of all, each of them once. Its outcome is that of
// the first.
func joined(all []error) error {
	if len(all) == 1 {
		return all[0]
	}
	var texts []string
	for _, err := range all {
		if text := err.Error(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return &severalErrors{strings.Join(texts, "; "), all}
}

type severalErrors struct {
	text string
	all  []error
}

// Error implements error.
func (e *severalErrors) Error() string { return e.text }

// Unwrap returns all errors.
func (e *severalErrors) Unwrap() []error { return e.all }
