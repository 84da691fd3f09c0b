// Package fair shares a scarce resource between the pods of a node, so that a pod or a
// namespace that asks for much does not delay the others.
package fair

import "container/list"

// Owner is the pod that waits.
type Owner struct{ Namespace, UID string }

// Queue holds waiting callers. It serves the namespaces in turn, the pods of a namespace
// in turn, and the callers of a pod in order of arrival. So a new pod waits for at most
// one caller of each other namespace, and of each other pod of its own. The zero value is
// empty. A Queue has no lock.
type Queue struct {
	namespaces map[string]*namespace
	turns      list.List // of *namespace, the next one first
	size       int
}

type namespace struct {
	name  string
	pods  map[string]*pod
	turns list.List // of *pod, the next one first
	place *list.Element
}

type pod struct {
	uid       string
	namespace *namespace
	waiting   list.List // of *Ticket, in order of arrival
	place     *list.Element
}

// Ticket is one waiting caller.
type Ticket struct {
	// Turn is closed when Next returns the ticket.
	Turn chan struct{}

	pod   *pod
	place *list.Element // nil once the ticket is served or removed
}

// Add adds a caller to the queue.
func (q *Queue) Add(o Owner) *Ticket {
	n := q.namespaces[o.Namespace]
	if n == nil {
		n = &namespace{name: o.Namespace, pods: map[string]*pod{}}
		n.place = q.turns.PushBack(n)
		if q.namespaces == nil {
			q.namespaces = map[string]*namespace{}
		}
		q.namespaces[o.Namespace] = n
	}
	p := n.pods[o.UID]
	if p == nil {
		p = &pod{uid: o.UID, namespace: n}
		p.place = n.turns.PushBack(p)
		n.pods[o.UID] = p
	}
	t := &Ticket{Turn: make(chan struct{}), pod: p}
	t.place = p.waiting.PushBack(t)
	q.size++
	return t
}

// Next removes the next caller, closes its Turn, and returns its namespace. It passes
// over namespaces that may not have a turn now; nil means that all may. ok is false if
// there is no caller.
func (q *Queue) Next(may func(namespace string) bool) (of string, ok bool) {
	for place := q.turns.Front(); place != nil; place = place.Next() {
		n := place.Value.(*namespace)
		if may != nil && !may(n.name) {
			continue
		}
		p := n.turns.Front().Value.(*pod)
		t := p.waiting.Front().Value.(*Ticket)
		q.turns.MoveToBack(n.place)
		n.turns.MoveToBack(p.place)
		q.Remove(t)
		close(t.Turn)
		return n.name, true
	}
	return "", false
}

// Remove removes a caller that waits no longer. It returns false if the caller had its
// turn already.
func (q *Queue) Remove(t *Ticket) bool {
	if t.place == nil {
		return false
	}
	p := t.pod
	n := p.namespace
	p.waiting.Remove(t.place)
	t.place = nil
	q.size--
	if p.waiting.Len() == 0 {
		n.turns.Remove(p.place)
		delete(n.pods, p.uid)
	}
	if len(n.pods) == 0 {
		q.turns.Remove(n.place)
		delete(q.namespaces, n.name)
	}
	return true
}

// Len returns the number of waiting callers.
func (q *Queue) Len() int { return q.size }
