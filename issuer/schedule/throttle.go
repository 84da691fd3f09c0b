package schedule

import (
	"math/rand/v2"
	"time"

	"github.com/flexstack/step-csi/issuer/renewal"
)

// throttles has the pods that are over their rate limit at the issuer. All certificates
// of such a pod wait, instead of each finding out by itself. The zero value is empty.
type throttles map[string]throttle

type throttle struct {
	over     bool      // the last renewal was over the limit
	failures int       // more failures than successes
	failed   time.Time // when the last failure ended
	jitter   float64   // of the wait, in [0, 1)
}

// served records a successful renewal of the pod. The pod's next renewal may start at once.
// If that one is over the limit again, its wait is the last one, not the shortest: the
// limit is still the same.
func (t throttles) served(pod string) {
	last, ok := t[pod]
	if last.failures--; last.failures > 0 {
		last.over = false
		t[pod] = last
	} else if ok {
		delete(t, pod)
	}
}

// rejected records that a renewal of the pod was over the limit. Of several concurrent
// renewals, only the first counts.
func (t *throttles) rejected(pod string, began, now time.Time) {
	if *t == nil {
		*t = throttles{}
	}
	for name, other := range *t { // a pod that was removed leaves nothing
		if now.Sub(other.failed) > 2*renewal.SlowestRetry {
			delete(*t, name)
		}
	}
	last := (*t)[pod]
	if last.over && !began.After(last.failed) {
		return
	}
	(*t)[pod] = throttle{true, last.failures + 1, now, rand.Float64()}
}

// until returns when a certificate of the pod may be renewed. The wait fits the
// certificate: one with a long lifetime does not make another one expire.
func (t throttles) until(pod string, v renewal.Validity) time.Time {
	last := t[pod]
	if !last.over {
		return time.Time{}
	}
	return last.failed.Add(v.Retry(last.failures, last.failed, last.jitter))
}
