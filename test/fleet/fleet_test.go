package fleet

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

const (
	allNodes       = 5000
	volumesPerNode = 110
	// capacity is how many certificates one step-ca on two cores signs per second.
	capacity = 1000
)

// fleet is a cluster and its CA, in virtual time.
type fleet struct {
	*testing.T
	begin time.Time
	ca    *queueingCA
	nodes []*node

	phases []*phase
	panels []panel
	away   []span // when the CA was unavailable

	mu      sync.Mutex
	expired []time.Duration
	learnt  map[int]int // number of roots to nodes that know them
}

// span is a period, relative to the start of the scenario.
type span struct{ from, to time.Duration }

func (s span) has(at time.Duration) bool { return s.from <= at && at < s.to }

// newFleet returns a fleet of nodes without volumes. It scales the CA's capacity
// down with the fleet.
func newFleet(t *testing.T, nodes int) *fleet {
	f := &fleet{T: t, begin: time.Now(), learnt: map[int]int{}}
	r := rate{begin: f.begin}
	f.ca = &queueingCA{takes: second(nodes) / capacity, asked: r, signed: r, rooted: r, roots: rootsNamed("old")}
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

// outage makes the CA unavailable, as is selects, while meanwhile runs.
func (f *fleet) outage(is *bool, meanwhile func()) {
	from := f.now()
	f.ca.set(func() { *is = true })
	meanwhile()
	f.ca.set(func() { *is = false })
	f.away = append(f.away, span{from, f.now()})
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

// knows records that a node has received new roots.
func (f *fleet) knows(roots issuer.Roots) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.learnt[len(roots.Own)]++
}

// end kills all plugins and records the certificates that have expired.
func (f *fleet) end() {
	f.each((*node).end)
	now := time.Now()
	for _, n := range f.nodes {
		for _, v := range n.volumes {
			f.until(v.validity, now)
		}
	}
}
