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

	"github.com/flexstack/step-csi/issuer/renewal"
)

// Readiness knows which issuers have not answered yet, and why. The zero value
// knows of none.
type Readiness struct {
	mu      sync.Mutex
	waiting map[string]error
}

// Expect makes the issuer one that has to answer.
func (r *Readiness) Expect(name string) { r.set(name, errors.New("not asked yet")) }

func (r *Readiness) set(name string, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = map[string]error{}
	}
	r.waiting[name] = reason
}

// Err is nil once every issuer has answered, and was trusted, once; else it
// names those that have not. It stays nil when a CA goes away later: to restart
// the process would not bring the CA back.
func (r *Readiness) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []error
	for _, name := range slices.Sorted(maps.Keys(r.waiting)) {
		all = append(all, fmt.Errorf("issuer %s: %w", name, r.waiting[name]))
	}
	return errors.Join(all...)
}

// Connect connects to the issuer ahead of the first request, and says so until
// it works, or ctx ends: a wrong URL or password should show before a pod needs
// them.
func (r *Readiness) Connect(ctx context.Context, name string, i *Issuer) {
	logger := klog.FromContext(ctx).WithValues("issuer", name)
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := i.Connect(ctx)
		switch {
		case err == nil:
			r.mu.Lock()
			delete(r.waiting, name)
			r.mu.Unlock()
			logger.Info("Connected")
			return
		case ctx.Err() != nil:
			return
		}
		r.set(name, err)
		logger.Error(err, "Cannot connect", "retry", wait)
		if !renewal.SleepUntil(ctx, time.Now().Add(wait)) {
			return
		}
	}
}
