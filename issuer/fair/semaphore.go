package fair

import (
	"context"
	"sync"
)

// Semaphore limits how many callers work at the same time. One namespace never has all
// slots, so that a caller of another namespace need not wait for slow work.
type Semaphore struct {
	mu      sync.Mutex
	slots   int
	working map[string]int // by namespace
	total   int
	waiting Queue
}

// NewSemaphore makes a semaphore with at least two slots.
func NewSemaphore(slots int) *Semaphore {
	return &Semaphore{slots: max(2, slots), working: map[string]int{}}
}

// Acquire waits for a slot, at most until ctx ends. The caller must call release once.
func (s *Semaphore) Acquire(ctx context.Context, o Owner) (release func(), err error) {
	s.mu.Lock()
	t := s.waiting.Add(o)
	s.admit()
	s.mu.Unlock()
	select {
	case <-t.Turn:
		return func() { s.release(o.Namespace) }, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	removed := s.waiting.Remove(t)
	s.mu.Unlock()
	if !removed { // admitted at the same moment
		s.release(o.Namespace)
	}
	return nil, ctx.Err()
}

// Waiting returns the number of callers that wait.
func (s *Semaphore) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting.Len()
}

// Busy tells whether a caller works or waits.
func (s *Semaphore) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total+s.waiting.Len() > 0
}

func (s *Semaphore) admit() {
	for s.total < s.slots {
		namespace, ok := s.waiting.Next(func(n string) bool { return s.working[n] < s.slots-1 })
		if !ok {
			return
		}
		s.working[namespace]++
		s.total++
	}
}

func (s *Semaphore) release(namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.working[namespace]--; s.working[namespace] == 0 {
		delete(s.working, namespace)
	}
	s.admit()
}
