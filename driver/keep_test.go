package driver

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// quiet is the test's context, without logs.
func quiet(t *testing.T) context.Context { return klog.NewContext(t.Context(), logr.Discard()) }

// mounted is a volume that was issued now, for the lifetime.
func mounted(lifetime time.Duration) *volume {
	v := &volume{fresh: make(chan struct{}, 1)}
	issueNow(v, lifetime)
	return v
}

func issueNow(v *volume, lifetime time.Duration) {
	now := time.Now()
	s := &state{validity: renewal.Validity{Issued: now, NotAfter: now.Add(lifetime)}}
	s.next = s.validity.Due(renewal.Random())
	v.state.Store(s)
}

func TestKeepRenewsForAsLongAsTheVolumeIsMounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := mounted(24 * time.Hour)
		var tries []time.Time
		renew := func(_ context.Context, v *volume) error {
			tries = append(tries, time.Now())
			if len(tries) == 31 {
				return errGone
			}
			if time.Now().After(v.state.Load().validity.NotAfter) {
				t.Error("too late")
			}
			issueNow(v, 24*time.Hour)
			return nil
		}
		begin := time.Now()
		keep(quiet(t), v, renew)
		if took := time.Since(begin); took < 31*14*time.Hour || took > 31*18*time.Hour {
			t.Errorf("30 renewals took %s", took)
		}
	})
}

func TestKeepThroughAnOutage(t *testing.T) {
	for name, outage := range map[string]time.Duration{"short": time.Hour, "longer than a lifetime": 40 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(quiet(t))
				v := mounted(24 * time.Hour)
				back := v.state.Load().next.Add(outage)
				var tries []time.Time
				renew := func(_ context.Context, v *volume) error {
					now := time.Now()
					if n := len(tries); n > 0 && now.Sub(tries[n-1]) > renewal.SlowestRetry {
						t.Errorf("%s between two tries", now.Sub(tries[n-1]))
					}
					tries = append(tries, now)
					if now.Before(back) {
						return errors.New("no route to host")
					}
					issueNow(v, 24*time.Hour)
					cancel()
					return nil
				}
				keep(ctx, v, renew)
				if late := time.Since(back); late > renewal.SlowestRetry {
					t.Errorf("renewed %s after the CA was back", late)
				}
				if most := int(outage/(renewal.SlowestRetry/2)) + 20; len(tries) > most {
					t.Errorf("%d tries", len(tries))
				}
				if s := v.state.Load(); s.err != nil || s.failures != 0 {
					t.Errorf("after the renewal: %d failures, %v", s.failures, s.err)
				}
			})
		})
	}
}

func TestTroubleTellsTheCondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := mounted(24 * time.Hour)
		if reason, message := v.state.Load().trouble(time.Now()); reason != "" {
			t.Errorf("at first: %s: %s", reason, message)
		}
		ctx, cancel := context.WithCancel(quiet(t))
		go keep(ctx, v, func(context.Context, *volume) error { return errors.New("no route to host") })
		time.Sleep(20 * time.Hour)
		if reason, message := v.state.Load().trouble(time.Now()); reason != "RenewalFailing" {
			t.Errorf("failing: %s: %s", reason, message)
		}
		time.Sleep(10 * time.Hour)
		if reason, message := v.state.Load().trouble(time.Now()); reason != "CertificateExpired" {
			t.Errorf("expired: %s: %s", reason, message)
		}
		cancel()
		synctest.Wait()
	})
}

func TestKeepStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(quiet(t))
		done := make(chan struct{})
		begin := time.Now()
		go func() {
			defer close(done)
			keep(ctx, mounted(3*time.Hour), func(ctx context.Context, _ *volume) error {
				<-ctx.Done() // a CA that hangs
				return ctx.Err()
			})
		}()
		time.Sleep(2*time.Hour + 12*time.Minute + time.Second) // in the middle of a renewal
		cancel()
		<-done
		if took := time.Since(begin); took > 2*time.Hour+13*time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

// What was published together is not renewed together.
func TestRenewalsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		perMinute := map[time.Time]int{}
		for range 110 {
			perMinute[mounted(24*time.Hour).state.Load().next.Truncate(time.Minute)]++
		}
		for minute, n := range perMinute {
			if n > 8 {
				t.Errorf("%d at %s", n, minute)
			}
		}
	})
}

// A renewal that has no token waits for one, without giving up, and comes as
// soon as there is one.
func TestKeepWaitsForAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(quiet(t))
		v := mounted(3 * time.Hour)
		tries := 0
		var came time.Time
		go keep(ctx, v, func(_ context.Context, v *volume) error {
			tries++
			if !v.applicant().Token.ValidAt(time.Now()) {
				return fmt.Errorf("%w: %w", issuer.ErrUnavailable, issuer.ErrNoToken)
			}
			came = time.Now()
			issueNow(v, 3*time.Hour)
			return nil
		})
		time.Sleep(2*time.Hour + 30*time.Minute)
		if tries < 2 || tries > 30 {
			t.Errorf("%d tries without a token", tries)
		}
		sent := time.Now()
		v.take(issuer.NewToken("old", sent.Add(-time.Minute)))
		v.take(issuer.NewToken("new", sent.Add(time.Hour)))
		v.take(issuer.NewToken("older", sent.Add(time.Minute)))
		synctest.Wait()
		if !came.Equal(sent) {
			t.Errorf("renewed at %s, and the token came at %s", came, sent)
		}
		if got := v.applicant().Token.Reveal(); got != "new" {
			t.Errorf("the token kept is %q", got)
		}
		cancel()
		synctest.Wait()
	})
}
