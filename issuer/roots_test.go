package issuer_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"go.step.sm/crypto/minica"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// log records events from several goroutines.
type log[T any] struct {
	mu     sync.Mutex
	events []T
}

func (l *log[T]) add(event T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

func (l *log[T]) all() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// changingSigner is a signer whose roots can change, and which can be unavailable.
type changingSigner struct {
	*hostileSigner
	store *trust.Store
	asked log[time.Time]
	away  atomic.Bool
	roots atomic.Pointer[issuer.Roots] // instead of the embedded signer's
}

func newChangingSigner(t *testing.T) *changingSigner {
	return &changingSigner{hostileSigner: newSigner(t), store: trust.NewStore("", trust.Pins{})}
}

func (s *changingSigner) answer(roots issuer.Roots) { s.roots.Store(&roots) }

func (s *changingSigner) Roots(ctx context.Context) (issuer.Roots, error) {
	if roots := s.roots.Load(); roots != nil {
		return *roots, nil
	}
	return s.hostileSigner.Roots(ctx)
}

func (s *changingSigner) Trust() *trust.Store { return s.store }

func (s *changingSigner) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	s.asked.add(time.Now())
	if s.away.Load() {
		return issuer.Roots{}, issuer.Unavailable
	}
	return s.Roots(ctx)
}

// following runs test while FollowRoots requests the roots every five minutes.
func following(t *testing.T, test func(s *changingSigner, i *issuer.Issuer, fresh *log[issuer.Roots])) {
	synctest.Test(t, func(t *testing.T) {
		s := newChangingSigner(t)
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
		defer stop()
		var fresh log[issuer.Roots]
		go i.FollowRoots(ctx, 5*time.Minute, func(r issuer.Roots, err error) {
			if err == nil {
				fresh.add(r)
			}
		})
		synctest.Wait()
		test(s, i, &fresh)
	})
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRootsAreRequestedOnATimer(t *testing.T) {
	following(t, func(s *changingSigner, _ *issuer.Issuer, fresh *log[issuer.Roots]) {
		pass(24 * time.Hour)
		if len(s.asked.all()) < 270 || len(s.asked.all()) > 310 || len(fresh.all()) != len(s.asked.all()) {
			t.Errorf("%d requests, %d answers", len(s.asked.all()), len(fresh.all()))
		}
		spread := map[time.Duration]bool{}
		asked := s.asked.all()
		for i := range asked[1:] {
			between := asked[i+1].Sub(asked[i])
			spread[between] = true
			if between < 4*time.Minute || between > 6*time.Minute {
				t.Errorf("the pause between two requests is %s", between)
			}
		}
		if len(spread) < 100 {
			t.Errorf("only %d different pauses: the nodes would send their requests together", len(spread))
		}
	})
}

// While the CA is down, the plugin sends no more requests than usual and keeps the
// known roots.
func TestRootsStayDuringAnOutage(t *testing.T) {
	following(t, func(s *changingSigner, _ *issuer.Issuer, fresh *log[issuer.Roots]) {
		s.away.Store(true)
		pass(time.Hour)
		if len(s.asked.all()) > 16 || len(fresh.all()) != 1 {
			t.Errorf("%d requests, %d answers", len(s.asked.all()), len(fresh.all()))
		}
		s.away.Store(false)
		pass(6 * time.Minute)
		if len(fresh.all()) < 2 {
			t.Error("no request after the outage")
		}
	})
}

// A certificate under an unknown root makes the issuer request the roots.
func TestAnswersBringNewRoots(t *testing.T) {
	following(t, func(s *changingSigner, i *issuer.Issuer, fresh *log[issuer.Roots]) {
		next, err := minica.New()
		if err != nil {
			t.Fatal(err)
		}
		both := issuer.Roots{Own: []*x509.Certificate{s.ca.Root, next.Root}}
		s.answer(both)
		for range 3 { // these cause one request
			if _, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); err != nil {
				t.Fatal(err)
			}
		}
		pass(5 * time.Second)
		if len(fresh.all()) != 2 || !fresh.all()[1].Same(both) {
			t.Errorf("%d answers", len(fresh.all()))
		}
	})
}

// A request for roots that was sent earlier and answered later does not replace newer
// roots, and neither does a certificate with older roots in its answer.
func TestNewerRootsAreNotReplaced(t *testing.T) {
	following(t, func(s *changingSigner, i *issuer.Issuer, _ *log[issuer.Roots]) {
		next, err := minica.New()
		if err != nil {
			t.Fatal(err)
		}
		older := time.Now()
		pass(time.Second)
		s.answer(issuer.Roots{Own: []*x509.Certificate{s.ca.Root, next.Root}, Asked: time.Now()})
		pass(6 * time.Minute) // a refresh
		if got := len(i.LatestRoots().Own); got != 2 {
			t.Fatalf("%d roots after the refresh, want 2", got)
		}
		s.answer(issuer.Roots{Own: []*x509.Certificate{s.ca.Root}, Asked: older})
		if _, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); err != nil {
			t.Fatal(err)
		}
		pass(6 * time.Minute)
		if got := len(i.LatestRoots().Own); got != 2 {
			t.Errorf("%d roots after an older answer, want 2", got)
		}
	})
}

// Before the first answer, failures that are normal during the startup are no errors.
func TestRootsStartQuietly(t *testing.T) {
	const message = "Roots refresh failed"
	refused := fmt.Errorf("%w: %w", issuer.Unavailable, issuer.ErrNotYet)
	for name, test := range map[string]struct {
		err   error
		after time.Duration
		lines int
	}{
		"not ready":               {refused, 50 * time.Second, 0},
		"not ready for longer":    {refused, 10 * time.Minute, 1},
		"the wrong fingerprint":   {errors.New("the CA has no root with the fingerprint"), 10 * time.Minute, 1},
		"after the first success": {nil, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &failingRoots{changingSigner: newChangingSigner(t)}
				i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
				if err != nil {
					t.Fatal(err)
				}
				var lines log[string]
				logger := funcr.New(func(_, args string) { lines.add(args) }, funcr.Options{})
				ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
				defer stop()
				s.err.Store(&test.err)
				go i.FollowRoots(ctx, 5*time.Minute, func(issuer.Roots, error) {})
				pass(test.after)
				if test.err == nil {
					s.err.Store(&refused)
					pass(6 * time.Minute)
				}
				if log := strings.Join(lines.all(), "\n"); strings.Count(log, message) != test.lines {
					t.Errorf("the log:\n%s", log)
				}
			})
		})
	}
}

// failingRoots is a signer whose requests for roots fail.
type failingRoots struct {
	*changingSigner
	err atomic.Pointer[error]
}

func (s *failingRoots) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	if err := *s.err.Load(); err != nil {
		return issuer.Roots{}, err
	}
	return s.changingSigner.RefreshRoots(ctx)
}

// AwaitRoots returns as soon as the roots are known. Before that, it makes FollowRoots try
// again soon, and its error is that of the last request.
func TestAwaitRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &failingRoots{changingSigner: newChangingSigner(t)}
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
		if err != nil {
			t.Fatal(err)
		}
		if err := i.AwaitRoots(t.Context()); issuer.OutcomeOf(err) != issuer.Unavailable || !strings.Contains(err.Error(), "wait for the roots of the CA: ") {
			t.Errorf("without an answer: %v", err)
		}
		refused := error(issuer.CallerRejected.Because(errors.New("the token is of another cluster")))
		s.err.Store(&refused)
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
		defer stop()
		go i.FollowRoots(ctx, 5*time.Minute, func(issuer.Roots, error) {})
		pass(time.Hour)
		if err := i.AwaitRoots(t.Context()); issuer.OutcomeOf(err) != issuer.CallerRejected || !strings.Contains(err.Error(), "another cluster") {
			t.Errorf("with an error: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := i.AwaitRoots(short); issuer.OutcomeOf(err) != issuer.CallerRejected {
			t.Errorf("with an early end: %v", err)
		}
		pass(10 * time.Minute) // the retries are at long intervals
		var none error
		s.err.Store(&none)
		began := time.Now()
		if err := i.AwaitRoots(t.Context()); err != nil || time.Since(began) > 5*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		asked := len(s.asked.all())
		if err := i.AwaitRoots(t.Context()); err != nil || len(s.asked.all()) != asked {
			t.Errorf("known roots: %v, %d requests", err, len(s.asked.all())-asked)
		}
	})
}
