package issuer_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
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
		go r.Connect(ctx, "default", i)
		synctest.Wait()
		if err := r.Err(); err == nil || !strings.Contains(err.Error(), "issuer default: ") || !strings.Contains(err.Error(), "defect of step-csi") {
			t.Errorf("the readiness after a panic: %v", err)
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
