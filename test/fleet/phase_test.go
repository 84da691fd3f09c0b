package fleet

import (
	"fmt"
	"time"
)

// phase is a part of a scenario, with its measurements.
type phase struct {
	span
	name string
	// storm means that the pods request more certificates at a time than the CA can
	// sign. The CA must not waste time on calls that no caller waits for.
	storm bool
	// took is how long the fleet needed to recover.
	took time.Duration

	asked, failed, signed int // number of calls
	received              int // by the CA, of those for certificates
	// The most calls in any second, and a tenth of the most calls in any ten seconds.
	mostAsked, mostAskedOf10, mostSigned, mostRooted, mostReviewed int
	busiest                                                        int // the most calls from one node in a minute
	expired                                                        int
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

// measure computes the measurements of all phases, after the last one.
func (f *fleet) measure() {
	second := second(len(f.nodes))
	for _, p := range f.phases {
		asked, signed := f.authority.asked.within(p.span), f.ca.signed.within(p.span)
		p.asked, p.signed = sum(asked), sum(signed)
		// The requests that fail in the first second may be those of an outage before.
		p.failed = sum(f.authority.failed.within(span{p.from + time.Second, p.to}))
		p.received = sum(f.ca.asked.within(p.span))
		p.mostAsked, p.mostAskedOf10 = most(asked, second), most(asked, 10*second)/10
		p.mostSigned, p.mostRooted = most(signed, second), most(f.authority.rooted.within(p.span), second)
		p.mostReviewed = most(f.api.reviewed.within(p.span), second)
		for _, at := range f.expired {
			if p.has(at) {
				p.expired++
			}
		}
	}
}

// leastPause is the longest pause between two attempts for a certificate that is
// about to expire. A certificate that expires this soon after an outage may miss its
// last attempt.
const leastPause = time.Second

// check checks the invariants of every scenario.
func (f *fleet) check() {
	for _, p := range f.phases {
		switch {
		case p.storm && p.received > p.signed*5/4:
			f.Errorf("%s: the CA received %d calls for %d certificates", p.name, p.received, p.signed)
		case p.storm:
		case p.failed > 0 && !f.isAway(p.from):
			f.Errorf("%s: %d requests failed", p.name, p.failed)
		case p.mostAsked >= capacity:
			f.Errorf("%s: %d certificate requests within a second", p.name, p.mostAsked)
		case p.busiest > 120: // the pause between two attempts is at least half a second
			f.Errorf("%s: one node made %d calls in a minute", p.name, p.busiest)
		}
	}
	for _, at := range f.expired {
		if !f.isAway(at) && !f.isAway(at-leastPause) {
			f.Errorf("a certificate expired after %s, while certificates could be issued", at)
		}
	}
	if f.overdue() {
		f.Error("renewals are overdue at the end")
	}
	if n := f.authority.limited.Load(); n > 0 {
		f.Errorf("%d calls exceeded a limit of the authority", n)
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

// row returns the phase as a row of the table in docs/fleet.md.
func (p *phase) row() string {
	took := ""
	if p.took > 0 {
		took = p.took.Round(time.Second).String()
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %d | %s | %s |", p.name,
		grouped(p.asked), grouped(p.mostAsked), grouped(p.mostAskedOf10), grouped(p.mostSigned), grouped(p.mostReviewed), grouped(p.mostRooted),
		p.busiest, grouped(p.expired), took)
}

// grouped writes 12345 as 12,345.
func grouped(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}
