package ra

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// Only roots that a CA was certainly asked for later are newer, whatever the clocks of
// the replicas say and however long the calls took.
func TestAskedAfter(t *testing.T) {
	const known = 10 * time.Second // after the start of the test, like all times below
	for name, test := range map[string]struct {
		sent, arrived time.Duration
		age           time.Duration
		newer         bool
	}{
		"asked later":                        {20 * time.Second, 20 * time.Second, 5 * time.Second, true},
		"asked earlier":                      {20 * time.Second, 20 * time.Second, 15 * time.Second, false},
		"the same answer again":              {20 * time.Second, 20 * time.Second, 10 * time.Second, false},
		"asked during a slow call":           {5 * time.Second, 30 * time.Second, 10 * time.Second, false},
		"asked later, in a slow call":        {12 * time.Second, 30 * time.Second, time.Second, true},
		"no age: an earlier version":         {11 * time.Second, 12 * time.Second, 0, true},
		"no age, and sent before":            {9 * time.Second, 12 * time.Second, 0, false},
		"the oldest that there can be":       {20 * time.Second, 20 * time.Second, math.MaxUint32 * time.Millisecond, false},
		"a millisecond that was rounded off": {20 * time.Second, 20 * time.Second, 10*time.Second - time.Millisecond, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			time.Sleep(test.arrived)
			asked, newer := askedAfter(start.Add(known), start.Add(test.sent), uint32(test.age.Milliseconds()))
			if newer != test.newer || asked.After(time.Now()) || !asked.Equal(time.Now().Add(-test.age)) {
				t.Errorf("%s: newer %v, asked %s after the start", name, newer, asked.Sub(start))
			}
		})
	}
}
