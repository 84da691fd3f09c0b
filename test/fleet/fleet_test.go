package fleet

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer/renewal"
)

const (
	allNodes       = 5000
	volumesPerNode = 110
	// capacity is how many certificates one step-ca on two cores signs per second.
	capacity = 1000
	// reviewCapacity is how many tokens one core of an API server reviews per second: a
	// review takes 0.7 ms of CPU time (BenchmarkTokenReview).
	reviewCapacity = 1400
)

// fleet is a cluster with its authority, API server and CA, in virtual time.
type fleet struct {
	*testing.T
	begin time.Time
	ca    *queueingCA
	api   *apiServer
	nodes []*node

	authority *authority

	phases []*phase
	panels []panel
	away   []outage

	mu      sync.Mutex
	expired []time.Duration
}

// outage is when certificates could not be issued, and for want of what.
type outage struct {
	span
	missing string
}

// span is a period, relative to the start of the scenario.
type span struct{ from, to time.Duration }

func (s span) has(at time.Duration) bool { return s.from <= at && at < s.to }

// newFleet returns a fleet of nodes without volumes. It scales the capacities of the CA
// and of the API server down with the fleet.
func newFleet(t *testing.T, nodes int) *fleet {
	f := &fleet{T: t, begin: time.Now()}
	r := rate{begin: f.begin}
	f.ca = &queueingCA{takes: second(nodes) / capacity, asked: r, signed: r, rooted: r, roots: rootsNamed("old")}
	f.api = &apiServer{takes: second(nodes) / reviewCapacity, seat: make(chan struct{}, 1), reviewed: r}
	f.authority = newAuthority(f)
	for _, r := range f.authority.replicas {
		r.start()
	}
	for range nodes {
		f.nodes = append(f.nodes, &node{fleet: f})
	}
	return f
}

// second is how long the scaled-down CA takes for as many certificates per node as
// the full CA signs in one second.
func second(nodes int) time.Duration { return time.Second * allNodes / time.Duration(nodes) }

// now is the time since the start of the scenario.
func (f *fleet) now() time.Duration { return time.Since(f.begin) }

// each calls do for all nodes at the same time.
func (f *fleet) each(do func(*node)) {
	var all sync.WaitGroup
	for _, n := range f.nodes {
		all.Go(func() { do(n) })
	}
	all.Wait()
}

// sometime is a random time within the duration.
func sometime(d time.Duration) time.Duration { return time.Duration(rand.Float64() * float64(d)) }

// mount gives all nodes certificates, with the ages that age returns.
func (f *fleet) mount(age func(untilDue time.Duration) time.Duration) {
	now := time.Now()
	for _, n := range f.nodes {
		for range volumesPerNode {
			v := issuedAt(now)
			old := age(v.Due().Sub(now))
			v.Issued, v.NotAfter = v.Issued.Add(-old), v.NotAfter.Add(-old)
			n.volumes = append(n.volumes, &volume{v})
		}
	}
}

// warmUp brings the fleet to the state after a long run: the certificates have
// random ages, and the nodes started at different times.
func (f *fleet) warmUp() {
	f.mount(sometime)
	f.each(func(n *node) {
		time.Sleep(sometime(rootsRefresh))
		n.start()
	})
	time.Sleep(10 * time.Minute)
}

// settle waits until no renewal is overdue and returns how long that took.
func (f *fleet) settle() time.Duration {
	begin := f.now()
	for f.overdue() {
		if f.now()-begin > 6*time.Hour {
			f.Error("renewals are still overdue after 6 hours")
			break
		}
		time.Sleep(5 * time.Second)
	}
	return f.now() - begin
}

func (f *fleet) overdue() bool {
	limit := time.Now().Add(-5 * time.Second)
	for _, n := range f.nodes {
		if n.overdue(limit) {
			return true
		}
	}
	return false
}

// outage makes something unavailable while meanwhile runs: set does it, and ends it.
func (f *fleet) outage(missing string, set func(unavailable bool), meanwhile func()) {
	from := f.now()
	set(true)
	meanwhile()
	set(false)
	f.away = append(f.away, outage{span{from, f.now()}, missing})
}

func (f *fleet) caAway(away bool)  { f.ca.set(func() { f.ca.away = away }) }
func (f *fleet) caHangs(hang bool) { f.ca.set(func() { f.ca.hangs = hang }) }
func (f *fleet) apiAway(away bool) { f.api.set(func() { f.api.away = away }) }

func (f *fleet) authorityAway(away bool) {
	for _, r := range f.authority.replicas {
		if away {
			r.end()
		} else {
			r.start()
		}
	}
}

// until records that a certificate was in use until now, which may be after its
// expiry.
func (f *fleet) until(v renewal.Validity, now time.Time) {
	if now.Before(v.NotAfter) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expired = append(f.expired, v.NotAfter.Sub(f.begin))
}

// end kills all plugins and replicas, and records the certificates that have expired.
func (f *fleet) end() {
	f.each((*node).end)
	for _, r := range f.authority.replicas {
		r.end()
	}
	now := time.Now()
	for _, n := range f.nodes {
		for _, v := range n.volumes {
			f.until(v.validity, now)
		}
	}
}
