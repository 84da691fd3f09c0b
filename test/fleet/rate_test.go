package fleet

import (
	"testing"
	"time"
)

// slot is the resolution at which calls are counted.
const slot = 100 * time.Millisecond

// rate counts calls over time.
type rate struct {
	begin time.Time
	slots []int32
}

func (r *rate) count(at time.Time) {
	i := int(at.Sub(r.begin) / slot)
	if missing := i + 1 - len(r.slots); missing > 0 {
		r.slots = append(r.slots, make([]int32, missing)...)
	}
	r.slots[i]++
}

// within returns the slots of the span.
func (r *rate) within(s span) []int32 {
	to := min(int(s.to/slot), len(r.slots))
	return r.slots[min(int(s.from/slot), to):to]
}

// sum returns the number of calls.
func sum(slots []int32) (n int) {
	for _, s := range slots {
		n += int(s)
	}
	return n
}

// most is the largest number of calls in any window of this length, in steps of a
// slot.
func most(slots []int32, window time.Duration) int {
	width := int(window / slot)
	inside, largest := 0, 0
	for i, s := range slots {
		inside += int(s)
		if i >= width {
			inside -= int(slots[i-width])
		}
		largest = max(largest, inside)
	}
	return largest
}

func TestRate(t *testing.T) {
	r := rate{begin: time.Now()}
	for _, at := range []time.Duration{0, 50, 950, 1050, 1999, 2000, 5000} {
		r.count(r.begin.Add(at * time.Millisecond))
	}
	all := r.within(span{0, time.Hour})
	if sum(all) != 7 || most(all, time.Second) != 3 || most(all, 10*time.Second) != 7 {
		t.Errorf("%d calls, %d in a second, %d in ten", sum(all), most(all, time.Second), most(all, 10*time.Second))
	}
	if n := sum(r.within(span{time.Second, 2 * time.Second})); n != 2 {
		t.Errorf("%d calls in the second second, want 2", n)
	}
}
