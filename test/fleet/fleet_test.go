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
	// capacity is what one step-ca on two cores signs in a second.
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
	away   []span // the CA

	mu      sync.Mutex
	expired []time.Duration
	learnt  map[int]int // nodes that know so many roots
}

// span is a part of the time since the beginning.
type span struct{ from, to time.Duration }

func (s span) has(at time.Duration) bool { return s.from <= at && at < s.to }

// newFleet has so many nodes, without volumes, and a CA that is as much smaller
// than the real one as the fleet is.
func newFleet(t *testing.T, nodes int) *fleet {
	f := &fleet{T: t, begin: time.Now(), learnt: map[int]int{}}
	r := rate{begin: f.begin}
	f.ca = &queueingCA{takes: second(nodes) / capacity, asked: r, signed: r, rooted: r, roots: rootsNamed("old")}
	for range nodes {
		f.nodes = append(f.nodes, &node{fleet: f})
	}
	return f
}

// second is the time in which the CA of a fleet of so many nodes signs what that of
// the whole one signs in a second.
func second(nodes int) time.Duration { return time.Second * allNodes / time.Duration(nodes) }

// now is the time since the beginning.
func (f *fleet) now() time.Duration { return time.Since(f.begin) }

// each does something with all nodes at the same time.
func (f *fleet) each(do func(*node)) {
	var all sync.WaitGroup
	for _, n := range f.nodes {
		all.Go(func() { do(n) })
	}
	all.Wait()
}

// sometime is a moment within the duration.
func sometime(d time.Duration) time.Duration { return time.Duration(rand.Float64() * float64(d)) }

// mount puts certificates into all nodes, each of which is as old as age says.
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

// warmUp is a fleet that has been running for long: the certificates are of all ages
// between none and due, and the nodes have not been started at the same time.
func (f *fleet) warmUp() {
	f.mount(sometime)
	f.each(func(n *node) {
		time.Sleep(sometime(rootsRefresh))
		n.start()
	})
	time.Sleep(10 * time.Minute)
}

// settle waits until nothing is overdue, and returns how long that took.
func (f *fleet) settle() time.Duration {
	begin := f.now()
	for f.overdue() {
		if f.now()-begin > 6*time.Hour {
			f.Error("there is no end to it")
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

// outage takes the CA away, as set says, until it is put back.
func (f *fleet) outage(is *bool, meanwhile func()) {
	from := f.now()
	f.ca.set(func() { *is = true })
	meanwhile()
	f.ca.set(func() { *is = false })
	f.away = append(f.away, span{from, f.now()})
}

// until is for a certificate that was in use until now.
func (f *fleet) until(v renewal.Validity, now time.Time) {
	if now.Before(v.NotAfter) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expired = append(f.expired, v.NotAfter.Sub(f.begin))
}

// knows is for a node that has got other roots.
func (f *fleet) knows(roots issuer.Roots) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.learnt[len(roots.Own)]++
}

// end kills all plugins.
func (f *fleet) end() {
	f.each((*node).end)
	now := time.Now()
	for _, n := range f.nodes {
		for _, v := range n.volumes {
			f.until(v.validity, now)
		}
	}
}
