package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
)

var errAway = fmt.Errorf("%w: away", issuer.Unavailable)

func TestRevocationRetriesForABoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin, tries := time.Now(), 0
		err := persist(t.Context(), func(context.Context) error { tries++; return errAway })
		if took := time.Since(begin); took > revocationLimit || took < revocationLimit-maxRevocationRetry || tries < 8 || tries > 15 {
			t.Errorf("%d attempts in %s", tries, took)
		}
		if !errors.Is(err, errAway) || !strings.Contains(err.Error(), "no more retries after 5m0s") {
			t.Error(err)
		}
	})
}

func TestRevocationWhileCAHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		err := persist(t.Context(), func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("%w: %w", issuer.Unavailable, ctx.Err())
		})
		if took := time.Since(begin); took != revocationLimit || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("took %s, error %v", took, err)
		}
	})
}

func TestRevocationSucceedsOrCannot(t *testing.T) {
	for _, want := range []error{nil, issuer.Denied, issuer.Unsupported} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			err := persist(t.Context(), func(context.Context) error {
				if tries++; tries < 4 {
					return errAway
				}
				return want
			})
			if tries != 4 || !errors.Is(err, want) {
				t.Errorf("%d attempts, error %v", tries, err)
			}
		})
	}
}

// hangingRevoker is a signer whose revocations wait for the end of ctx.
type hangingRevoker struct {
	issuer.Signer
	calls atomic.Int64
}

func (h *hangingRevoker) Revoke(ctx context.Context, _ issuer.Revocation) error {
	h.calls.Add(1)
	<-ctx.Done()
	return fmt.Errorf("%w: %w", issuer.Unavailable, ctx.Err())
}

// While the CA hangs, revocations do not use up the memory. The log names each certificate
// that is not revoked.
func TestRevocationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revoker := &hangingRevoker{}
		i, err := issuer.New(issuer.Config{Signer: revoker, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		var byHand atomic.Int64
		logger := funcr.New(func(_, text string) {
			if strings.Contains(text, "to revoke by hand: step ca revoke 17") {
				byHand.Add(1)
			}
		}, funcr.Options{})
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logger))
		d, _ := measured(t)
		state := newIssuerState("default", Issuer{Issuer: i}, d.metrics)
		for range mostWaiting + 3 {
			d.revokeBy(ctx, state, issuer.Revocation{Serial: "17"})
		}
		synctest.Wait()
		if calls, logged := revoker.calls.Load(), byHand.Load(); calls != mostRevocations || logged != 3 {
			t.Errorf("%d calls, %d rejected; want %d and 3", calls, logged, mostRevocations)
		}
		stop()
		d.ending.Wait()
		if logged := byHand.Load(); logged != mostWaiting+3 {
			t.Errorf("%d of %d are logged", logged, mostWaiting+3)
		}
	})
}

// A call in flight may finish when the plugin stops, within revocationGrace. No new
// call starts.
func TestRevocationWhileThePluginStops(t *testing.T) {
	for name, test := range map[string]struct {
		answersAfter, stopsAfter, want time.Duration
		err                            string
	}{
		"the call finishes":     {5 * time.Second, time.Second, 5 * time.Second, "<nil>"},
		"the call hangs":        {time.Hour, time.Second, time.Second + revocationGrace, "the plugin stops"},
		"between two calls":     {0, 500 * time.Millisecond, 500 * time.Millisecond, "the plugin stops"},
		"the limit comes first": {time.Hour, revocationLimit - time.Second, revocationLimit, "deadline"},
		"the stop comes first":  {3 * time.Second, 0, 3 * time.Second, "<nil>"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				time.AfterFunc(test.stopsAfter, stop)
				begin := time.Now()
				err := persist(ctx, func(ctx context.Context) error {
					if test.answersAfter == 0 {
						return errAway
					}
					select {
					case <-time.After(test.answersAfter):
						return nil
					case <-ctx.Done():
						return fmt.Errorf("%w: %w", issuer.Unavailable, ctx.Err())
					}
				})
				if took := time.Since(begin); took != test.want || !strings.Contains(fmt.Sprint(err), test.err) {
					t.Errorf("took %s, error %v", took, err)
				}
			})
		})
	}
}
