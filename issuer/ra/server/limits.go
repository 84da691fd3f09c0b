package server

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limit is a token bucket: Rate requests per second, and Burst at once.
type Limit struct {
	Rate  float64
	Burst int
}

// Limits bound the requests of one replica. The zero value of each stands for its
// default.
type Limits struct {
	// Node is for all requests of a node: 50/s, and 500 at once, since a node can
	// start all its pods at once.
	Node Limit
	// Pod is for the requests for one pod, which has a few volumes: 1/s, and 20 at
	// once.
	Pod Limit
}

func (l Limits) withDefaults() (Limits, error) {
	for _, d := range []struct {
		name      string
		limit     *Limit
		otherwise Limit
	}{
		{"node", &l.Node, Limit{50, 500}},
		{"pod", &l.Pod, Limit{1, 20}},
	} {
		if *d.limit == (Limit{}) {
			*d.limit = d.otherwise
		}
		if d.limit.Rate <= 0 || d.limit.Burst < 1 {
			return l, fmt.Errorf("limits.%s: needs a rate above zero and a burst of at least one", d.name)
		}
	}
	return l, nil
}

// sweepAbove is how many buckets there are before full ones are thrown away: they
// are as good as new ones.
const sweepAbove = 1024

// limiter has a bucket for each key.
type limiter struct {
	limit   Limit
	mu      sync.Mutex
	buckets map[string]*rate.Limiter
	sweepAt int
}

func newLimiter(l Limit) *limiter {
	return &limiter{limit: l, buckets: map[string]*rate.Limiter{}, sweepAt: sweepAbove}
}

// allow takes a token out of the key's bucket, if there is one.
func (l *limiter) allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	bucket := l.buckets[key]
	if bucket == nil {
		if len(l.buckets) >= l.sweepAt {
			l.sweep(time.Now())
		}
		bucket = rate.NewLimiter(rate.Limit(l.limit.Rate), l.limit.Burst)
		l.buckets[key] = bucket
	}
	return bucket.Allow()
}

// sweep is seldom enough to cost nothing on average.
func (l *limiter) sweep(now time.Time) {
	for key, bucket := range l.buckets {
		if bucket.TokensAt(now) >= float64(l.limit.Burst) {
			delete(l.buckets, key)
		}
	}
	l.sweepAt = max(sweepAbove, 2*len(l.buckets))
}
