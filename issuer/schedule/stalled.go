package schedule

import (
	"fmt"
	"time"
)

// stallLimit is how long Run may look for no renewal, and how long a renewal may take. Run
// looks every clockCheck. Callers limit a renewal to two minutes, most of which it waits for
// the issuer, so neither a slow issuer nor a slow machine reaches the limit.
const stallLimit = 15 * time.Minute

// Stalled returns an error if the renewals hang, and only a new process can continue them.
// A scheduler that does not run is not stalled. The limit is time by the monotonic clock,
// which stops while the machine is suspended.
func (s *Scheduler) Stalled() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil || s.running.Err() != nil {
		return nil
	}
	if idle := time.Since(s.heartbeat); idle > stallLimit {
		return fmt.Errorf("the scheduler has looked for no renewal for %s", idle.Round(time.Second))
	}
	for e := range s.renewing {
		if took := time.Since(e.began); took > stallLimit {
			return fmt.Errorf("a renewal has been in progress for %s", took.Round(time.Second))
		}
	}
	return nil
}
