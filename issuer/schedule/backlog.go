package schedule

import (
	"cmp"
	"slices"
	"time"
)

// Backlog holds the entries that are due. It serves them round robin: one entry of each
// pod per round, so that a pod with many or short-lived volumes delays no other pod.
// Within a round, the entry with the highest lateness is first.
type Backlog struct {
	pods  map[string]*Queue // the due entries of each pod, by expiry
	round []*element        // the rest of the current round; the next entry is last
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

// remove removes the element, unless it is nil or already removed.
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

// of returns the due entries of the pod.
func (b *Backlog) of(pod string) (all []*Entry) {
	if q := b.pods[pod]; q != nil {
		for _, el := range q.elements {
			all = append(all, el.entry)
		}
	}
	return all
}

// next returns the next entry of the round, or nil. The entry stays until remove.
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

// begin starts a round. Sorting takes O(log n) per entry.
func (b *Backlog) begin(now time.Time) {
	for _, pod := range b.pods {
		b.round = append(b.round, pod.first())
	}
	slices.SortFunc(b.round, func(x, y *element) int { return cmp.Compare(x.entry.lateness(now), y.entry.lateness(now)) })
}

// lateness is the elapsed part of the entry's window: 0 when the entry is due, 1 when
// its certificate expires, more after that.
func (e *Entry) lateness(now time.Time) float64 {
	window := e.validity.NotAfter.Sub(e.due)
	if window <= 0 {
		return 1
	}
	return float64(now.Sub(e.due)) / float64(window)
}
