package fair

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// served returns the owners in the order in which the queue serves them.
func served(q *Queue, tickets map[*Ticket]Owner) (order []string) {
	for q.Len() > 0 {
		q.Next(nil)
		for t, o := range tickets {
			select {
			case <-t.Turn:
				order = append(order, o.Namespace+"/"+o.UID)
				delete(tickets, t)
			default:
			}
		}
	}
	return order
}

// Namespaces have turns, and so have the pods of a namespace, however many callers of the
// others came first.
func TestTurns(t *testing.T) {
	var q Queue
	tickets := map[*Ticket]Owner{}
	add := func(count int, o Owner) {
		for range count {
			tickets[q.Add(o)] = o
		}
	}
	add(4, Owner{"greedy", "1"})
	add(2, Owner{"greedy", "2"})
	add(2, Owner{"shop", "web"})
	add(1, Owner{"greedy", "3"})
	add(1, Owner{"bank", "db"})
	want := []string{
		"greedy/1", "shop/web", "bank/db", "greedy/2", "shop/web", "greedy/3",
		"greedy/1", "greedy/2", "greedy/1", "greedy/1",
	}
	if order := served(&q, tickets); !slices.Equal(order, want) {
		t.Errorf("the order is %q", order)
	}
	if len(q.namespaces) != 0 || q.turns.Len() != 0 {
		t.Errorf("the empty queue still has %d namespaces", len(q.namespaces))
	}
}

// The callers of one pod have turns in order of arrival.
func TestOnePodInOrder(t *testing.T) {
	var q Queue
	var tickets []*Ticket
	for range 100 {
		tickets = append(tickets, q.Add(Owner{"shop", "web"}))
	}
	for i, ticket := range tickets {
		q.Next(nil)
		select {
		case <-ticket.Turn:
		default:
			t.Fatalf("caller %d has no turn", i)
		}
	}
}

// Whatever callers arrive and give up, every remaining one gets a turn, and nothing stays
// in the queue.
func TestRemove(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		var q Queue
		tickets := map[*Ticket]bool{}
		for range 200 {
			switch {
			case random.IntN(3) > 0:
				tickets[q.Add(Owner{fmt.Sprint(random.IntN(3)), fmt.Sprint(random.IntN(4))})] = true
			case random.IntN(2) > 0:
				q.Next(nil)
			default:
				for ticket := range tickets {
					select {
					case <-ticket.Turn:
						if q.Remove(ticket) {
							t.Fatalf("seed %d: a caller with a turn was removed", seed)
						}
					default:
						if !q.Remove(ticket) || q.Remove(ticket) {
							t.Fatalf("seed %d: a waiting caller was not removed once", seed)
						}
					}
					delete(tickets, ticket)
					break
				}
			}
		}
		for {
			if _, ok := q.Next(nil); !ok {
				break
			}
		}
		for ticket := range tickets {
			select {
			case <-ticket.Turn:
			default:
				t.Fatalf("seed %d: a caller got no turn", seed)
			}
		}
		if q.Len() != 0 || len(q.namespaces) != 0 || q.turns.Len() != 0 {
			t.Fatalf("seed %d: %d callers of %d namespaces remain", seed, q.Len(), len(q.namespaces))
		}
	}
}
