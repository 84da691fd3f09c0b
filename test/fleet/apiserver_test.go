package fleet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// apiServer reviews one token at a time. Unlike the CA, it notices that a caller has
// given up while the request waits: see "API Priority and Fairness",
// https://kubernetes.io/docs/concepts/cluster-administration/flow-control/.
type apiServer struct {
	takes time.Duration // per review
	seat  chan struct{}

	mu       sync.Mutex
	away     bool // whether it refuses connections
	reviewed rate // requests for reviews
}

// set changes the state of the API server.
func (a *apiServer) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// review handles a TokenReview.
func (a *apiServer) review(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", issuer.Ended(ctx), ctx.Err())
	}
	a.mu.Lock()
	a.reviewed.count(time.Now())
	away := a.away
	a.mu.Unlock()
	if away {
		return errRefused
	}
	release, err := acquire(ctx, a.seat)
	if err != nil {
		return err
	}
	defer release()
	time.Sleep(a.takes)
	return nil
}
