package server

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
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
	l.Node = cmp.Or(l.Node, Limit{50, 500})
	l.Pod = cmp.Or(l.Pod, Limit{1, 20})
	return l, errors.Join(l.Node.check("limits.node"), l.Pod.check("limits.pod"))
}

func (l Limit) check(key string) error {
	if l.Rate <= 0 || l.Burst < 1 {
		return fmt.Errorf("%s: the rate must be above 0, and the burst at least 1", key)
	}
	return nil
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
	return l.bucket(key).Allow()
}

// delay takes n tokens from the key's bucket, and returns how long to wait until the
// bucket has had them.
func (l *limiter) delay(key string, n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bucket(key).ReserveN(time.Now(), min(n, l.limit.Burst)).Delay()
}

// charge takes a token from the key's bucket, even if the bucket is empty: then allow
// returns false for longer.
func (l *limiter) charge(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bucket(key).Reserve()
}

// bucket returns the key's bucket. The caller holds the mutex.
func (l *limiter) bucket(key string) *rate.Limiter {
	bucket := l.buckets[key]
	if bucket == nil {
		if len(l.buckets) >= l.sweepAt {
			now := time.Now()
			maps.DeleteFunc(l.buckets, func(_ string, b *rate.Limiter) bool { return b.TokensAt(now) >= float64(l.limit.Burst) })
			// Twice as many, so that the cost of sweeping per call is constant.
			l.sweepAt = max(sweepAbove, 2*len(l.buckets))
		}
		bucket = rate.NewLimiter(rate.Limit(l.limit.Rate), l.limit.Burst)
		l.buckets[key] = bucket
	}
	return bucket
}

// empty tells whether allow would return false now.
func (l *limiter) empty(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	bucket := l.buckets[key]
	return bucket != nil && bucket.Tokens() < 1
}
