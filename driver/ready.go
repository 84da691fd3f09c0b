package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// waiting holds the issuers that have not answered yet, and why.
type waiting struct {
	mu      sync.Mutex
	reasons map[string]error
}

func (w *waiting) set(issuer string, reason error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reasons[issuer] = reason
}

func (w *waiting) done(issuer string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.reasons, issuer)
}

// Ready is nil once every issuer has answered, and was trusted, once; else it
// names those that have not. The driver stays ready when a CA goes away later:
// to restart it would not bring the CA back.
func (d *Driver) Ready() error {
	d.waiting.mu.Lock()
	defer d.waiting.mu.Unlock()
	var all []error
	for _, name := range slices.Sorted(maps.Keys(d.waiting.reasons)) {
		all = append(all, fmt.Errorf("issuer %s: %w", name, d.waiting.reasons[name]))
	}
	return errors.Join(all...)
}

// connect connects to the issuer ahead of the first pod, and says so until it
// works: a wrong URL or password should show before a pod needs them.
func (d *Driver) connect(ctx context.Context, name string) {
	logger := klog.FromContext(ctx).WithValues("issuer", name)
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := d.authorities[name].issuer.Connect(ctx)
		switch {
		case err == nil:
			d.waiting.done(name)
			logger.Info("Connected")
			return
		case ctx.Err() != nil:
			return
		}
		d.waiting.set(name, err)
		logger.Error(err, "Cannot connect", "retry", wait)
		if !sleepUntil(ctx, time.Now().Add(wait)) {
			return
		}
	}
}
