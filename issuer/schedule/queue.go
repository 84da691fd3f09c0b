package schedule

import (
	"container/heap"
	"time"
)

// Queue is a priority queue of entries: the entry with the earliest time is first. All
// operations take O(log n).
type Queue struct{ elements elements }

// element is an entry's place in a queue.
type element struct {
	entry *Entry
	at    time.Time
	index int // -1 once removed
}

func (q *Queue) add(e *Entry, at time.Time) *element {
	el := &element{entry: e, at: at}
	heap.Push(&q.elements, el)
	return el
}

// remove removes the element, unless it is nil or already removed.
func (q *Queue) remove(el *element) {
	if el != nil && el.index >= 0 {
		heap.Remove(&q.elements, el.index)
	}
}

// first returns the element with the earliest time, or nil.
func (q *Queue) first() *element {
	if len(q.elements) == 0 {
		return nil
	}
	return q.elements[0]
}

// elements implements heap.Interface.
type elements []*element

func (s elements) Len() int           { return len(s) }
func (s elements) Less(i, j int) bool { return s[i].at.Before(s[j].at) }

func (s elements) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

func (s *elements) Push(x any) {
	el := x.(*element)
	el.index = len(*s)
	*s = append(*s, el)
}

func (s *elements) Pop() any {
	last := len(*s) - 1
	el := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	el.index = -1
	return el
}
