package issuer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/backoff"
)

// Readiness holds the issuers that were never connected, with the reason. The zero
// value holds none.
type Readiness struct {
	mu          sync.Mutex
	unconnected map[string]error
}

// Expect adds an issuer.
func (r *Readiness) Expect(name string) { r.set(name, errors.New("not connected yet")) }

func (r *Readiness) set(name string, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unconnected == nil {
		r.unconnected = map[string]error{}
	}
	r.unconnected[name] = reason
}

// Err returns nil once every issuer was connected, and otherwise names the others. It
// stays nil when a CA goes down later: a restart of the process would not help.
func (r *Readiness) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []error
	for _, name := range slices.Sorted(maps.Keys(r.unconnected)) {
		all = append(all, fmt.Errorf("issuer %s: %w", name, r.unconnected[name]))
	}
	return errors.Join(all...)
}

// Connect connects to the issuer before its first request, and retries until that
// succeeds or ctx ends, so that the log shows a wrong URL or password before a pod
// needs the issuer.
func (r *Readiness) Connect(ctx context.Context, name string, i *Issuer) {
	logger := klog.FromContext(ctx).WithValues("issuer", name)
	retry := backoff.Backoff{First: time.Second, Max: time.Minute}
	for {
		err := i.Connect(ctx)
		switch {
		case err == nil:
			r.mu.Lock()
			delete(r.unconnected, name)
			r.mu.Unlock()
			logger.Info("Issuer connected")
			return
		case ctx.Err() != nil:
			return
		}
		r.set(name, err)
		wait := retry.Next()
		logger.Error(err, "Cannot connect to the issuer", "retry", wait.Round(time.Millisecond).String())
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}
