package schedule

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer/renewal"
)

func TestQueueIsInOrder(t *testing.T) {
	var q Queue
	now := time.Now()
	var all []*element
	for range 1000 {
		all = append(all, q.add(&Entry{}, now.Add(rand.N(time.Hour))))
	}
	for i, el := range all {
		if i%3 == 0 {
			q.remove(el)
			q.remove(el) // a second remove has no effect
		}
	}
	q.remove(nil)
	count := 0
	for last := now; q.first() != nil; count++ {
		first := q.first()
		if first.at.Before(last) {
			t.Fatalf("%s comes after %s", first.at, last)
		}
		last = first.at
		q.remove(first)
	}
	if count != 666 {
		t.Errorf("%d elements, want 666", count)
	}
}

// due returns an entry that is overdue by over, a fraction of its window between due
// time and expiry.
func due(pod string, window time.Duration, over float64, now time.Time) *Entry {
	at := now.Add(-time.Duration(over * float64(window)))
	return &Entry{pod: pod, due: at, validity: renewal.Validity{NotAfter: at.Add(window)}}
}

// The entry that is latest relative to its own window comes first, not the entry
// that expires first. No pod is served twice while another pod waits.
func TestBacklogIsFair(t *testing.T) {
	now := time.Now()
	var b Backlog
	names := map[*Entry]string{}
	add := func(name string, e *Entry) {
		names[e] = name
		b.add(e)
	}
	add("short, half over", due("short", 100*time.Second, 0.5, now))
	add("long, nearly over", due("long", 8*time.Hour, 0.99, now))
	add("expired", due("expired", time.Hour, 2, now))
	for i := range 3 {
		add(fmt.Sprint("greedy ", i), due("greedy", 100*time.Second, 0.9-0.1*float64(i), now))
	}
	var got []string
	for e := b.next(now); e != nil; e = b.next(now) {
		if b.next(now) != e {
			t.Fatal("next returned another entry before the first was removed")
		}
		got = append(got, names[e])
		for _, el := range b.pods[e.pod].elements {
			if el.entry == e {
				b.remove(el)
				break
			}
		}
	}
	want := []string{"expired", "long, nearly over", "greedy 0", "short, half over", "greedy 1", "greedy 2"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the order is %q", got)
	}
}

// An event costs about the same with 1,000 and with 100,000 entries.
func BenchmarkAddAndRemove(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint("entries=", n), func(b *testing.B) {
			s := New()
			for i := range n {
				s.Add(fmt.Sprint(i), issuedAt(time.Now(), day, fmt.Sprint(i)), nil)
			}
			for b.Loop() {
				e := s.Add("another", issuedAt(time.Now(), day, "another"), nil)
				s.mu.Lock()
				s.step(time.Now())
				s.mu.Unlock()
				s.Remove(e)
			}
		})
	}
}
