package schedule

import (
	"cmp"
	"slices"
	"time"
)

// Backlog holds the entries that are due. It serves them in rounds (round robin):
// one of each pod, so that a pod with many or short-lived volumes delays no other
// pod. Within a round, the entry comes first that is latest within its own window.
type Backlog struct {
	pods  map[string]*Queue // the due entries of each pod, by expiry
	round []*element        // what is left of the current round, the next one last
	size  int
}

func (b *Backlog) add(e *Entry) *element {
	if b.pods == nil {
		b.pods = map[string]*Queue{}
	}
	pod := b.pods[e.pod]
	if pod == nil {
		pod = &Queue{}
		b.pods[e.pod] = pod
	}
	b.size++
	return pod.add(e, e.validity.NotAfter)
}

// remove takes the element out, unless it is nil or has left.
func (b *Backlog) remove(el *element) {
	if el == nil || el.index < 0 {
		return
	}
	pod := b.pods[el.entry.pod]
	pod.remove(el)
	b.size--
	if pod.first() == nil {
		delete(b.pods, el.entry.pod)
	}
}

// next is the entry whose turn it is, or nil. It stays until it is removed.
func (b *Backlog) next(now time.Time) *Entry {
	for b.size > 0 {
		if last := len(b.round) - 1; last >= 0 {
			if el := b.round[last]; el.index >= 0 {
				return el.entry
			}
			b.round = b.round[:last] // it was removed
			continue
		}
		b.begin(now)
	}
	b.round = nil
	return nil
}

// begin begins a round. Sorting it takes O(log n) for each of its entries.
func (b *Backlog) begin(now time.Time) {
	for _, pod := range b.pods {
		b.round = append(b.round, pod.first())
	}
	slices.SortFunc(b.round, func(x, y *element) int { return cmp.Compare(x.entry.lateness(now), y.entry.lateness(now)) })
}

// lateness is the part of the entry's window that is over: 0 when it is due, 1 when
// its certificate expires, more after that.
func (e *Entry) lateness(now time.Time) float64 {
	window := e.validity.NotAfter.Sub(e.due)
	if window <= 0 {
		return 1
	}
	return float64(now.Sub(e.due)) / float64(window)
}
