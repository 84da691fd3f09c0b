package fleet

import (
	"fmt"
	"time"
)

// phase is a part of a scenario, and what happened in it.
type phase struct {
	span
	name string
	// storm is one in which pods want more at a time than the CA signs. It is to be
	// busy with that, and with nothing that nobody waits for any more.
	storm bool
	// took is until all was as it should be.
	took time.Duration

	asked, signed, rooted int // calls
	// The most in any second, and a tenth of the most in any ten seconds.
	mostAsked, mostAskedOf10, mostSigned, mostRooted int
	busiest                                          int // the calls of one node in a minute
	expired                                          int
}

// phase runs a part of a scenario.
func (f *fleet) phase(name string, run func(p *phase)) {
	for _, n := range f.nodes {
		n.busiest = 0
	}
	p := &phase{name: name, span: span{from: f.now()}}
	run(p)
	p.to = f.now()
	for _, n := range f.nodes {
		p.busiest = max(p.busiest, n.busiest)
	}
	f.phases = append(f.phases, p)
}

// measure is for after the last phase.
func (f *fleet) measure() {
	second := second(len(f.nodes))
	for _, p := range f.phases {
		asked, signed, rooted := f.ca.asked.within(p.span), f.ca.signed.within(p.span), f.ca.rooted.within(p.span)
		p.asked, p.signed, p.rooted = sum(asked), sum(signed), sum(rooted)
		p.mostAsked, p.mostAskedOf10 = most(asked, second), most(asked, 10*second)/10
		p.mostSigned, p.mostRooted = most(signed, second), most(rooted, second)
		for _, at := range f.expired {
			if p.has(at) {
				p.expired++
			}
		}
	}
}

// leastPause is the most that passes between two tries of a certificate that is about
// to expire. One that does so this soon after the CA is back may be missed.
const leastPause = time.Second

// check is what has to be true of every scenario.
func (f *fleet) check() {
	for _, p := range f.phases {
		switch {
		case p.storm && p.asked > p.signed*5/4:
			f.Errorf("%s: %d calls for %d certificates", p.name, p.asked, p.signed)
		case p.storm:
		case p.mostAsked >= capacity:
			f.Errorf("%s: %d certificates asked for within a second", p.name, p.mostAsked)
		case p.busiest > 120: // half a second between two is the least, however little time is left
			f.Errorf("%s: one node asked %d times in a minute", p.name, p.busiest)
		}
	}
	for _, at := range f.expired {
		if !f.isAway(at) && !f.isAway(at-leastPause) {
			f.Errorf("a certificate expired after %s, though the CA was there", at)
		}
	}
	if f.overdue() {
		f.Error("there are overdue renewals at the end")
	}
}

func (f *fleet) isAway(at time.Duration) bool {
	for _, s := range f.away {
		if s.has(at) {
			return true
		}
	}
	return false
}

// row is the phase in the table of docs/fleet.md.
func (p *phase) row() string {
	took := ""
	if p.took > 0 {
		took = p.took.Round(time.Second).String()
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %d | %s | %s |", p.name,
		grouped(p.asked), grouped(p.mostAsked), grouped(p.mostAskedOf10), grouped(p.mostSigned), grouped(p.mostRooted),
		p.busiest, grouped(p.expired), took)
}

// grouped writes 12345 as 12,345.
func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}
