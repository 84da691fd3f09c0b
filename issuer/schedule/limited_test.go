package schedule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// limitedCA signs certificates that a certificate of the CA limits.
type limitedCA struct {
	*node
	until    time.Time // the expiry of the CA's certificate
	lifetime time.Duration
	entry    *Entry
	last     renewal.Validity
	at       []time.Time // of the renewals
}

const minInterval = time.Minute

func (n *node) limited(until time.Time, lifetime time.Duration) *limitedCA {
	ca := &limitedCA{node: n, until: until, lifetime: lifetime}
	ca.last = ca.sign()
	ca.entry = n.Add("pod", ca.last, func(ctx context.Context) (renewal.Validity, error) {
		err := n.ask(ctx, Renewal, "limited")
		n.mu.Lock()
		defer n.mu.Unlock()
		ca.at = append(ca.at, time.Now())
		switch {
		case err != nil:
			return ca.last, err
		case !time.Now().Before(ca.until):
			return ca.last, fmt.Errorf("%w: the intermediate has expired", issuer.Unavailable)
		}
		before := ca.last
		if ca.last = ca.sign(); !ca.last.NotAfter.After(before.NotAfter) {
			return ca.last, ErrLimited
		}
		return ca.last, nil
	})
	return ca
}

func (ca *limitedCA) sign() renewal.Validity {
	v := issuedAt(time.Now(), ca.lifetime, fmt.Sprint(len(ca.at)))
	v.MinInterval = minInterval
	if v.NotAfter.After(ca.until) {
		v.LeafNotAfter, v.NotAfter, v.LimitedBy = v.NotAfter, ca.until, "the intermediate"
	}
	return v
}

// renewals returns the times of the renewals so far.
func (ca *limitedCA) renewals() []time.Time {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return slices.Clone(ca.at)
}

// recertify gives the CA a certificate that expires at that time.
func (ca *limitedCA) recertify(until time.Time) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.until = until
}

// While nothing better is to be had, a certificate that the CA limits is renewed a few times,
// at the usual pace, and never more often than MinInterval allows. It counts as failing. From
// the expiry on, the retries back off.
func TestLimitedCertificateIsNotRenewedInALoop(t *testing.T) {
	for _, left := range []time.Duration{10 * time.Second, 10 * time.Minute, 20 * time.Hour} {
		virtually(t, func(n *node) {
			until := time.Now().Add(left)
			ca := n.limited(until, day)
			time.Sleep(left - time.Nanosecond)
			synctest.Wait()
			if len(ca.renewals()) == 0 || len(ca.renewals()) > 14 {
				t.Errorf("%s left: %d renewals", left, len(ca.renewals()))
			}
			for i, at := 1, ca.renewals(); i < len(at); i++ {
				if gap := at[i].Sub(at[i-1]); gap < minInterval {
					t.Errorf("%s left: a renewal %s after another", left, gap)
				}
			}
			state := ca.entry.State()
			if state.Failures != len(ca.renewals()) || !errors.Is(state.Err, ErrLimited) || !state.Validity.NotAfter.Equal(until) {
				t.Errorf("%s left: %+v", left, state)
			}
			before := len(ca.renewals())
			time.Sleep(time.Hour)
			if n := len(ca.renewals()) - before; n < 8 || n > 3600/100 {
				t.Errorf("%s left: %d attempts in the hour after the expiry", left, n)
			}
		})
	}
}

// A certificate that is limited is renewed as soon as the CA has a chain that is valid longer,
// and succeeds from then on.
func TestRenewEarly(t *testing.T) {
	virtually(t, func(n *node) {
		ca := n.limited(time.Now().Add(20*time.Hour), day)
		time.Sleep(15*time.Hour + 30*time.Second)
		if len(ca.renewals()) == 0 {
			t.Fatal("not renewed")
		}
		ca.recertify(time.Now().Add(1000 * time.Hour))
		before := len(ca.renewals())
		ca.entry.RenewEarly()
		time.Sleep(pace)
		synctest.Wait()
		if state := ca.entry.State(); len(ca.renewals()) != before+1 || state.Failures != 0 || state.Err != nil || state.Validity.LimitedBy != "" {
			t.Errorf("%d renewals; %+v", len(ca.renewals())-before, state)
		}
		// MinInterval applies, and a renewal that is due earlier stays so.
		ca.entry.RenewEarly()
		time.Sleep(minInterval - pace - time.Second)
		if len(ca.renewals()) != before+1 {
			t.Error("renewed within MinInterval")
		}
		time.Sleep(2 * pace)
		if len(ca.renewals()) != before+2 {
			t.Errorf("%d renewals after MinInterval", len(ca.renewals())-before)
		}
	})
}

// Shortly before the expiry, an early renewal does not wait for the MinInterval since the last
// one, which gained nothing: the certificate would expire.
func TestRenewEarlyBeforeTheExpiry(t *testing.T) {
	virtually(t, func(n *node) {
		until := time.Now().Add(90 * time.Second)
		ca := n.limited(until, day)
		for len(ca.renewals()) == 0 {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		ca.recertify(time.Now().Add(1000 * time.Hour))
		ca.entry.RenewEarly()
		time.Sleep(time.Until(until))
		synctest.Wait()
		if state := ca.entry.State(); len(ca.renewals()) != 2 || state.Failures != 0 {
			t.Errorf("%d renewals; %+v", len(ca.renewals()), state)
		}
	})
}

// Another root can change how long a certificate works, without a renewal.
func TestChange(t *testing.T) {
	virtually(t, func(n *node) {
		ca := n.limited(time.Now().Add(10*time.Minute), day)
		ca.recertify(time.Now().Add(1000 * time.Hour))
		v := ca.last
		v.NotAfter, v.LimitedBy = v.LeafNotAfter, ""
		ca.entry.Change(v)
		time.Sleep(14 * time.Hour)
		if len(ca.renewals()) != 0 {
			t.Error("renewed too early")
		}
		v.NotAfter, v.LimitedBy = time.Now().Add(time.Minute), "the root"
		ca.entry.Change(v)
		time.Sleep(pace)
		synctest.Wait()
		if len(ca.renewals()) != 1 {
			t.Errorf("%d renewals", len(ca.renewals()))
		}
	})
}
