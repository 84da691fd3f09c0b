package driver

import (
	"context"
	"slices"
	"sync"
)

// gate bounds the concurrent calls to one issuer. First publishes, which a pod
// waits for, go ahead of renewals, which have time; and renewals never take
// more than half of the places, so that a CA that hangs on them does not keep
// pods from starting once it answers again.
type gate struct {
	mu        sync.Mutex
	free      int
	renewals  int // how many more may enter
	publishes []chan struct{}
	waiting   []chan struct{} // renewals
}

func newGate(places int) *gate { return &gate{free: places, renewals: max(1, places/2)} }

// enter waits for a place. The caller leaves with the returned function.
func (g *gate) enter(ctx context.Context, renewal bool) (leave func(), err error) {
	queue := &g.publishes
	if renewal {
		queue = &g.waiting
	}
	turn := make(chan struct{})
	g.mu.Lock()
	*queue = append(*queue, turn)
	g.admit()
	g.mu.Unlock()

	leave = func() { g.leave(renewal) }
	select {
	case <-turn:
		return leave, nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	i := slices.Index(*queue, turn)
	if i >= 0 {
		*queue = slices.Delete(*queue, i, i+1)
	}
	g.mu.Unlock()
	if i < 0 { // its turn came at the same moment
		leave()
	}
	return nil, ctx.Err()
}

func (g *gate) leave(renewal bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free++
	if renewal {
		g.renewals++
	}
	g.admit()
}

// admit lets in whoever may enter. The caller holds the lock.
func (g *gate) admit() {
	for g.free > 0 {
		switch {
		case len(g.publishes) > 0:
			close(g.publishes[0])
			g.publishes = g.publishes[1:]
		case len(g.waiting) > 0 && g.renewals > 0:
			close(g.waiting[0])
			g.waiting = g.waiting[1:]
			g.renewals--
		default:
			return
		}
		g.free--
	}
}
