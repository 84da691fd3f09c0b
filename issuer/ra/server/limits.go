package server

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limit is a token bucket: Rate requests per second, with bursts of up to Burst.
type Limit struct {
	Rate  float64
	Burst int
}

// Limits are the rate limits of one replica. The zero value of each stands for its
// default.
type Limits struct {
	// Node limits the calls of a node; the default is 50/s and bursts of 500, because
	// all pods of a node can start at once.
	Node Limit
	// Pod limits the requests for one pod, which has a few volumes; the default is
	// 1/s and bursts of 20.
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
			return l, fmt.Errorf("limits.%s: the rate must be above 0, and the burst at least 1", d.name)
		}
	}
	return l, nil
}

// sweepAbove is the number of buckets from which full ones are deleted: a full bucket
// is the same as none.
const sweepAbove = 1024

// limiter has a token bucket for each key.
type limiter struct {
	limit   Limit
	mu      sync.Mutex
	buckets map[string]*rate.Limiter
	sweepAt int
}

func newLimiter(l Limit) *limiter {
	return &limiter{limit: l, buckets: map[string]*rate.Limiter{}, sweepAt: sweepAbove}
}

// allow takes a token from the key's bucket. It returns false if the bucket is empty.
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

// sweep deletes full buckets. The number of buckets at least doubles between two
// sweeps, so that their cost per call is constant.
func (l *limiter) sweep(now time.Time) {
	for key, bucket := range l.buckets {
		if bucket.TokensAt(now) >= float64(l.limit.Burst) {
			delete(l.buckets, key)
		}
	}
	l.sweepAt = max(sweepAbove, 2*len(l.buckets))
}
