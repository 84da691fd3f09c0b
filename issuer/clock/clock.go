// Package clock compares this machine's clock with that of a peer, by the time that the
// peer states in its answers.
package clock

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Tolerance is how far two clocks may differ without consequences. It is more than the two
// minutes that are promised, because servers and networks take time, too.
const Tolerance = 5 * time.Minute

// Comparison is what is known about the clock of a peer. The zero value knows nothing. It
// is safe for concurrent use.
type Comparison struct {
	mu    sync.Mutex
	at    time.Time // of the comparison; zero if there was none
	ahead time.Duration
}

// Observe takes the header Date of an answer that has just arrived, to a request that was
// sent at that time. It ignores a text that is no date.
func (c *Comparison) Observe(date string, sent time.Time) {
	stated, err := http.ParseTime(date)
	if err != nil {
		return
	}
	now := time.Now()
	// The peer read its clock between sent and now, and cut off the fraction of a second.
	most, least := stated.Add(time.Second).Sub(sent), stated.Sub(now)
	ahead := (most + least) / 2
	if least <= 0 && 0 <= most {
		ahead = 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.ahead = now, ahead
}

// last returns the last comparison. It is worthless if this machine's clock was set since
// then, or the machine was suspended: the wall clock has moved, and the monotonic one not.
func (c *Comparison) last() (ahead time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	moved := now.Round(0).Sub(c.at.Round(0)) - now.Sub(c.at)
	return c.ahead, !c.at.IsZero() && moved.Abs() < time.Second
}

// Differ tells whether the clocks are known to differ by more than Tolerance.
func (c *Comparison) Differ() bool {
	ahead, known := c.last()
	return known && ahead.Abs() > Tolerance
}

// Describe says how far the clock of the peer, such as "CA", is ahead of this machine's.
func (c *Comparison) Describe(peer string) string {
	ahead, known := c.last()
	off := ahead.Abs().Round(time.Second)
	switch {
	case !known:
		return fmt.Sprintf("compare the clocks of the %s and of this machine: date -u", peer)
	case off == 0:
		return fmt.Sprintf("the clocks of the %s and of this machine agree", peer)
	case ahead > 0:
		return fmt.Sprintf("the clock of the %s is %s ahead of this machine's", peer, off)
	}
	return fmt.Sprintf("the clock of the %s is %s behind this machine's", peer, off)
}
