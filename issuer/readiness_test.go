package issuer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/panics"
)

// panickingSigner panics in its first calls.
type panickingSigner struct {
	*changingSigner
	panics int
}

func (s *panickingSigner) mayPanic() {
	if s.panics > 0 {
		s.panics--
		panic("a defect of a test")
	}
}

func (s *panickingSigner) Connect(context.Context) error {
	s.mayPanic()
	return nil
}

func (s *panickingSigner) RefreshRoots(ctx context.Context) (issuer.Roots, error) {
	s.mayPanic()
	return s.changingSigner.RefreshRoots(ctx)
}

func newPanicking(t *testing.T, times int) (context.Context, *issuer.Issuer) {
	t.Helper()
	i, err := issuer.New(issuer.Config{Signer: &panickingSigner{newChangingSigner(t), times}, Policy: allowAll})
	if err != nil {
		t.Fatal(err)
	}
	return klog.NewContext(t.Context(), logr.Discard()), i
}

func TestConnectRetriesAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, i := newPanicking(t, 2)
		before := panics.Total()
		var r issuer.Readiness
		r.Expect("default")
		go r.Watch(ctx, "default", i, 5*time.Minute)
		synctest.Wait()
		if d := r.Details(); r.Err() == nil || !strings.HasPrefix(d, "issuer default: ") || !strings.Contains(d, "defect of step-csi") {
			t.Errorf("the readiness after a panic: %v, %q", r.Err(), d)
		}
		pass(4 * time.Second) // two pauses of the backoff
		if err := r.Err(); err != nil || panics.Total()-before != 2 {
			t.Errorf("%d panics: %v", panics.Total()-before, err)
		}
	})
}

func TestFollowRootsContinuesAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, i := newPanicking(t, 1)
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		var results log[error]
		go i.FollowRoots(ctx, time.Minute, func(_ issuer.Roots, err error) {
			results.add(err)
			if len(results.all()) == 2 {
				panic("a defect of the observer")
			}
		})
		pass(4 * time.Minute)
		all := results.all()
		if len(all) < 3 || all[0] == nil || all[1] != nil || all[2] != nil {
			t.Errorf("results %v", all)
		}
	})
}

// claimSigner is a signer whose CA has a claim that can change, and which can fail.
type claimSigner struct {
	*changingSigner
	mu      sync.Mutex
	allowed string
	err     error
}

func (s *claimSigner) set(allowed string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowed, s.err = allowed, err
}

func (s *claimSigner) HolderRenewal(context.Context, time.Duration) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allowed, s.err
}

func (s *claimSigner) Connect(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// watching runs test while Watch checks the issuers a and b every five minutes.
func watching(t *testing.T, a, b *claimSigner, test func(r *issuer.Readiness, logged func() string)) {
	watch(t, map[string]issuer.Config{"a": {Signer: a}, "b": {Signer: b}}, test)
}

// watch is watching for any issuers.
func watch(t *testing.T, issuers map[string]issuer.Config, test func(r *issuer.Readiness, logged func() string)) {
	synctest.Test(t, func(t *testing.T) {
		var lines log[string]
		logger := funcr.New(func(_, args string) { lines.add(args) }, funcr.Options{})
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
		defer stop()
		var r issuer.Readiness
		for name, c := range issuers {
			c.Policy = allowAll
			i, err := issuer.New(c)
			if err != nil {
				t.Fatal(err)
			}
			r.Expect(name)
			go r.Watch(ctx, name, i, 5*time.Minute)
		}
		synctest.Wait()
		test(&r, func() string { return strings.Join(lines.all(), "\n") })
	})
}

// A dead issuer does not take the others down, at the start or later, and is reported
// by itself.
func TestOneDeadIssuer(t *testing.T) {
	a, b := &claimSigner{changingSigner: newChangingSigner(t)}, &claimSigner{changingSigner: newChangingSigner(t)}
	b.set("", errors.New("no route"))
	watching(t, a, b, func(r *issuer.Readiness, logged func() string) {
		expect := func(when, details string, values map[string]float64) {
			t.Helper()
			if err := r.Err(); err != nil || r.Details() != details {
				t.Errorf("%s: %v, %q", when, err, r.Details())
			}
			for name, want := range values {
				if got := gauge(t, r, "step_csi_issuer_ready", name); got != want {
					t.Errorf("%s: step_csi_issuer_ready of issuer %s is %v", when, name, got)
				}
			}
		}
		expect("b is dead at the start", "issuer b: no route\n", map[string]float64{"a": 1, "b": 0})
		pass(time.Hour)
		if n := strings.Count(logged(), "Cannot connect to the issuer"); n < 50 {
			t.Errorf("%d lines about the issuer that was never connected:\n%s", n, logged())
		}
		b.set("", nil)
		pass(time.Minute)
		expect("b is back", "", map[string]float64{"a": 1, "b": 1})
		before := strings.Count(logged(), "Cannot connect to the issuer")
		a.set("", errors.New("the password\ndoes not open"))
		pass(20 * time.Minute)
		expect("a has died", "issuer a: the password does not open\n", map[string]float64{"a": 0, "b": 1})
		if n := strings.Count(logged(), "Cannot connect to the issuer") - before; n != 1 {
			t.Errorf("%d lines about the issuer that has died:\n%s", n, logged())
		}
		b.set("", errors.New("gone"))
		pass(20 * time.Minute)
		expect("both have died", "issuer a: the password does not open\nissuer b: gone\n", map[string]float64{"a": 0, "b": 0})
		a.set("", nil)
		b.set("", nil)
		pass(6 * time.Minute)
		expect("both are back", "", map[string]float64{"a": 1, "b": 1})
		r.ObserveRoots("b", errors.New("no roots"))
		expect("the roots of b", "issuer b: no roots\n", map[string]float64{"a": 1, "b": 0})
	})
}

// All issuers are dead: the process is not ready.
func TestNoIssuerWorks(t *testing.T) {
	a, b := &claimSigner{changingSigner: newChangingSigner(t)}, &claimSigner{changingSigner: newChangingSigner(t)}
	a.set("", errors.New("no route"))
	b.set("", errors.New("wrong password"))
	watching(t, a, b, func(r *issuer.Readiness, _ func() string) {
		if err := r.Err(); err == nil || r.Details() != "issuer a: no route\nissuer b: wrong password\n" {
			t.Errorf("%v, %q", err, r.Details())
		}
		b.set("", nil)
		pass(time.Minute)
		if err := r.Err(); err != nil {
			t.Error(err)
		}
	})
}

// A CA that lets holders renew is reported when it is found and when it changes, and
// the issuer stays ready.
func TestHolderRenewalIsReported(t *testing.T) {
	a, b := &claimSigner{changingSigner: newChangingSigner(t)}, &claimSigner{changingSigner: newChangingSigner(t)}
	a.set("no claim", nil)
	watching(t, a, b, func(r *issuer.Readiness, logged func() string) {
		expect := func(details string, warnings, ends int, value float64) {
			t.Helper()
			if err := r.Err(); err != nil || r.Details() != details {
				t.Errorf("%v, %q", err, r.Details())
			}
			if strings.Count(logged(), "Warning: the CA renews") != warnings || strings.Count(logged(), "The CA no longer renews") != ends {
				t.Errorf("the log:\n%s", logged())
			}
			if got := gauge(t, r, "step_csi_issuer_renewal_allowed", "a"); got != value {
				t.Errorf("the metric is %v", got)
			}
			if gauge(t, r, "step_csi_issuer_renewal_allowed", "b") != 0 || gauge(t, r, "step_csi_issuer_ready", "a") != 1 {
				t.Error("the metrics are wrong")
			}
		}
		expect("issuer a: warning: no claim\n", 1, 0, 1)
		pass(time.Hour)
		expect("issuer a: warning: no claim\n", 1, 0, 1)
		a.set("", nil)
		pass(6 * time.Minute)
		expect("", 1, 1, 0)
		a.set("no claim", nil)
		pass(6 * time.Minute)
		expect("issuer a: warning: no claim\n", 2, 1, 1)
	})
}

// Before the claim was read, there is no metric about it.
func TestUnknownClaimHasNoMetric(t *testing.T) {
	var r issuer.Readiness
	r.Expect("a")
	if n := testutil.CollectAndCount(&r, "step_csi_issuer_renewal_allowed"); n != 0 {
		t.Errorf("%d series", n)
	}
	if problems, err := testutil.CollectAndLint(&r); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// gauge returns the value of a metric of the issuer.
func gauge(t *testing.T, r *issuer.Readiness, metric, name string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == metric && m.GetLabel()[0].GetValue() == name {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s of issuer %s", metric, name)
	return 0
}

// An issuer that requires the claim refuses to sign while the CA lets holders renew,
// and signs soon after the CA was changed.
func TestRequireDisableRenewal(t *testing.T) {
	if _, err := issuer.New(issuer.Config{Signer: newSigner(t), Policy: allowAll, RequireDisableRenewal: true}); err == nil {
		t.Error("a signer that cannot tell is accepted")
	}
	synctest.Test(t, func(t *testing.T) {
		s := &claimSigner{changingSigner: newChangingSigner(t)}
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll, RequireDisableRenewal: true})
		if err != nil {
			t.Fatal(err)
		}
		expect := func(allowed string) {
			t.Helper()
			s.set(allowed, nil)
			_, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
			connected := i.Connect(t.Context())
			for _, err := range []error{err, connected} {
				if refused := errors.Is(err, issuer.Unavailable) && strings.Contains(err.Error(), "requireDisableRenewal, but "+allowed); refused != (allowed != "") || !refused && err != nil {
					t.Errorf("with %q: %v", allowed, err)
				}
			}
		}
		expect("no claim")
		expect("")
		expect("no claim")
		s.set("", issuer.Unavailable)
		if _, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{}); !errors.Is(err, issuer.Unavailable) {
			t.Errorf("the claim cannot be read: %v", err)
		}
	})
}

// While everything starts at the same time, the log has each reason once, and no error. It
// has an error at once if a person is needed, after a minute in any case, and always after
// the issuer was connected once.
func TestStartIsQuiet(t *testing.T) {
	refused := fmt.Errorf("%w: %w", issuer.Unavailable, &net.OpError{Op: "dial", Err: errors.New("connection refused")})
	notReady := fmt.Errorf("%w: %w", issuer.Unavailable, issuer.ErrNotYet)
	const cannot, waiting = "Cannot connect to the issuer", "Waiting for the issuer"
	a := &claimSigner{changingSigner: newChangingSigner(t)}
	a.set("", refused)
	watch(t, map[string]issuer.Config{"a": {Signer: a}}, func(r *issuer.Readiness, logged func() string) {
		expect := func(when string, infos, mistakes int) {
			t.Helper()
			if log := logged(); strings.Count(log, waiting) != infos || strings.Count(log, cannot) != mistakes {
				t.Errorf("%s: the log:\n%s", when, log)
			}
		}
		pass(20 * time.Second)
		expect("refused", 1, 0)
		if r.Err() == nil || !strings.Contains(r.Details(), "connection refused") {
			t.Errorf("the readiness: %v, %q", r.Err(), r.Details())
		}
		a.set("", notReady)
		pass(35 * time.Second)
		expect("not ready", 2, 0)
		a.set("", errors.New("the password does not open the key"))
		pass(2 * time.Minute)
		if log := logged(); strings.Count(log, cannot) == 0 || !strings.Contains(log, "the password does not open the key") {
			t.Errorf("the log:\n%s", log)
		}
		a.set("", nil)
		pass(2 * time.Minute)
		before := strings.Count(logged(), cannot)
		a.set("", refused)
		pass(20 * time.Minute)
		expect("later", 2, before+1)
	})
	a.set("", refused)
	watch(t, map[string]issuer.Config{"a": {Signer: a}}, func(_ *issuer.Readiness, logged func() string) {
		pass(2 * time.Minute)
		if log := logged(); strings.Count(log, waiting) != 1 || strings.Count(log, cannot) == 0 {
			t.Errorf("refused for two minutes: the log:\n%s", log)
		}
	})
	a.set("", errors.New("the password does not open the key"))
	watch(t, map[string]issuer.Config{"a": {Signer: a}}, func(_ *issuer.Readiness, logged func() string) {
		if log := logged(); !strings.Contains(log, cannot) || strings.Contains(log, waiting) {
			t.Errorf("a wrong password: the log:\n%s", log)
		}
	})
}
