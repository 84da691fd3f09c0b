package server

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// slots bounds what runs at the same time, for all keys (nodes or addresses) and for
// each. Free slots go to the waiting keys in turn, so that a key that asks for many
// delays another key by at most one turn.
type slots struct {
	ofKey   int // slots that one key can hold
	waiting int // calls of one key that can wait

	mu     sync.Mutex
	free   int
	keys   map[string]*slotQueue // of each key that holds a slot or waits
	queued []*slotQueue          // keys that wait, in turn
}

// slotQueue is one key's share of the slots.
type slotQueue struct {
	key     string
	held    int
	waiting []chan struct{} // closed when the slot is given
}

// errTooManyWait is the error of acquire if too many calls of the key wait.
var errTooManyWait = errors.New("too many calls wait")

func newSlots(total, ofKey, waiting int) *slots {
	return &slots{free: total, ofKey: ofKey, waiting: waiting, keys: map[string]*slotQueue{}}
}

// acquire waits for a slot, until ctx ends. The caller must call release, once.
func (s *slots) acquire(ctx context.Context, key string) (release func(), err error) {
	s.mu.Lock()
	q := s.keys[key]
	if q == nil {
		q = &slotQueue{key: key}
		s.keys[key] = q
	}
	release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.release(q)
	}
	if s.free > 0 && q.held < s.ofKey && len(q.waiting) == 0 {
		q.held++
		s.free--
		s.mu.Unlock()
		return release, nil
	}
	if len(q.waiting) >= s.waiting {
		s.forget(q)
		s.mu.Unlock()
		return nil, errTooManyWait
	}
	given := make(chan struct{})
	if q.waiting = append(q.waiting, given); len(q.waiting) == 1 {
		s.queued = append(s.queued, q)
	}
	s.mu.Unlock()
	select {
	case <-given:
		return release, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := slices.Index(q.waiting, given); n >= 0 {
		q.waiting = slices.Delete(q.waiting, n, n+1)
		if len(q.waiting) == 0 {
			s.queued = slices.DeleteFunc(s.queued, func(other *slotQueue) bool { return other == q })
		}
		s.forget(q)
	} else { // given at the same moment
		s.release(q)
	}
	return nil, ctx.Err()
}

// release frees a slot of q and gives free slots away. The caller holds the mutex.
func (s *slots) release(q *slotQueue) {
	q.held--
	s.free++
	for s.free > 0 {
		n := slices.IndexFunc(s.queued, func(next *slotQueue) bool { return next.held < s.ofKey })
		if n < 0 {
			break
		}
		next := s.queued[n]
		s.queued = slices.Delete(s.queued, n, n+1)
		close(next.waiting[0])
		if next.waiting = next.waiting[1:]; len(next.waiting) > 0 {
			s.queued = append(s.queued, next)
		}
		next.held++
		s.free--
	}
	s.forget(q)
}

// forget removes a key that neither holds a slot nor waits.
func (s *slots) forget(q *slotQueue) {
	if q.held == 0 && len(q.waiting) == 0 {
		delete(s.keys, q.key)
	}
}
