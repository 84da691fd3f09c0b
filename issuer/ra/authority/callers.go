package authority

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/flexstack/step-csi/issuer"
)

// callerAge is for how long a node plugin is known by its token. The API server
// remembers tokens for as long. Tokens of pods, which decide about names, are
// never remembered here.
const callerAge = 10 * time.Second

// callers remembers node plugins that the API server has just confirmed, by the
// hash of their token.
type callers struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]caller
	swept time.Time
}

type caller struct {
	pod   issuer.Pod
	until time.Time
}

func (c *callers) get(token issuer.Token, now time.Time) (issuer.Pod, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	found, known := c.known[sha256.Sum256([]byte(token.Reveal()))]
	return found.pod, known && now.Before(found.until)
}

// put is told when the review was asked for, not when the answer came.
func (c *callers) put(token issuer.Token, pod issuer.Pod, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || asked.Sub(c.swept) > callerAge {
		fresh := map[[sha256.Size]byte]caller{}
		for key, caller := range c.known {
			if asked.Before(caller.until) {
				fresh[key] = caller
			}
		}
		c.known, c.swept = fresh, asked
	}
	c.known[sha256.Sum256([]byte(token.Reveal()))] = caller{pod, asked.Add(callerAge)}
}
