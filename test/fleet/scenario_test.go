package fleet

import (
	"flag"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var nodes = flag.Int("nodes", allNodes/20, "nodes of the fleet; the CA is as much smaller than the real one as that is than 5,000")

// scenario is an event that a fleet has to survive.
type scenario struct {
	name, title string
	run         func(f *fleet)
	panels      func(f *fleet) []panel
}

var scenarios = []scenario{
	{"steady", "A normal day", steady, hours},
	{"start", "All pods start within two minutes", start, func(f *fleet) []panel {
		return []panel{minutes(f, 0, 15*time.Minute), hours(f)[0]}
	}},
	{"restart", "All node plugins stop, and start again ten minutes later at the same moment", restart, func(f *fleet) []panel {
		return []panel{minutes(f, 0, f.now())}
	}},
	{"hour", "The CA is unavailable for an hour", theCAFor(time.Hour), aroundTheEnd},
	{"hours", "The CA is unavailable for ten hours", theCAFor(10 * time.Hour), aroundTheEnd},
	{"rollout", "The CA hangs for an hour while a tenth of the pods are replaced", rollout, aroundTheEnd},
	{"authority", "Both replicas of the authority are unavailable for an hour", unavailable("no authority", (*fleet).authorityAway, time.Hour), aroundTheEnd},
	{"api", "The API server is unavailable for an hour", unavailable("no API server", (*fleet).apiAway, time.Hour), aroundTheEnd},
	{"upgrade", "The authority is upgraded while a tenth of the pods are replaced", upgrade, func(f *fleet) []panel {
		return []panel{minutes(f, 0, f.now())}
	}},
	{"busy", "All pods start within two minutes, and the API server reviews 350 tokens a second", busy, func(f *fleet) []panel {
		return []panel{minutes(f, 0, f.now())}
	}},
	{"rotation", "The root is rotated", rotation, hours},
}

func TestFleet(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			var f *fleet
			synctest.Test(t, func(t *testing.T) {
				f = newFleet(t, *nodes)
				s.run(f)
				f.panels = s.panels(f)
				f.end()
				f.measure()
				f.check()
			})
			for _, p := range f.phases {
				t.Log(p.row())
			}
			t.Logf("it took %s", time.Since(begin).Round(time.Second))
			if !t.Failed() {
				s.document(t, f)
			}
		})
	}
}

func steady(f *fleet) {
	f.warmUp()
	f.phase("24 hours", func(*phase) { time.Sleep(24 * time.Hour) })
}

// start includes the first wave of renewals.
func start(f *fleet) {
	f.each((*node).start)
	f.phase("the pods start", func(p *phase) {
		p.storm = true
		f.startPods(volumesPerNode, 2*time.Minute)
		p.took = f.now() - p.from
	})
	if took := f.phases[0].took; took > 15*time.Minute {
		f.Errorf("the last pod started after %s", took)
	}
	f.phase("the next 20 hours", func(*phase) { time.Sleep(20 * time.Hour) })
}

// startPods starts count pods on each node, within the given time.
func (f *fleet) startPods(count int, within time.Duration) {
	var all sync.WaitGroup
	for _, n := range f.nodes {
		for range count {
			all.Go(func() {
				time.Sleep(sometime(within))
				n.startPod()
			})
		}
	}
	all.Wait()
}

func restart(f *fleet) {
	f.warmUp()
	f.phase("before", func(*phase) { time.Sleep(10 * time.Minute) })
	f.each((*node).end)
	time.Sleep(10 * time.Minute)
	f.phase("after the start", func(p *phase) {
		f.each((*node).start)
		p.took = f.settle()
		time.Sleep(30 * time.Minute)
	})
	if p := f.phases[1]; p.took > time.Minute {
		f.Errorf("the overdue renewals took %s", p.took)
	}
}

// theCAFor makes the CA unavailable. It includes the wave of renewals that follows.
func theCAFor(d time.Duration) func(f *fleet) {
	return func(f *fleet) {
		unavailable("no CA", (*fleet).caAway, d)(f)
		f.phase("the next 20 hours", func(*phase) { time.Sleep(20 * time.Hour) })
	}
}

// unavailable makes something unavailable, and waits until nothing is overdue.
func unavailable(missing string, set func(f *fleet, away bool), d time.Duration) func(f *fleet) {
	return func(f *fleet) {
		f.warmUp()
		f.phase("before", func(*phase) { time.Sleep(time.Hour) })
		f.phase("while it is unavailable", func(*phase) {
			f.outage(missing, func(away bool) { set(f, away) }, func() { time.Sleep(d) })
		})
		f.phase("until nothing is overdue", func(p *phase) {
			if p.took = f.settle(); p.took > 15*time.Minute {
				f.Errorf("the overdue renewals took %s", p.took)
			}
		})
	}
}

func rollout(f *fleet) {
	f.warmUp()
	f.phase("before", func(*phase) { time.Sleep(time.Hour) })
	var pods sync.WaitGroup
	var started time.Duration
	f.phase("while the CA hangs", func(*phase) {
		f.outage("no CA", f.caHangs, func() {
			time.Sleep(30 * time.Minute)
			pods.Go(func() {
				f.startPods(volumesPerNode/10, 10*time.Minute)
				started = f.now()
			})
			time.Sleep(30 * time.Minute)
		})
	})
	back := f.now()
	f.phase("until all pods run and nothing is overdue", func(p *phase) {
		p.storm = true
		pods.Wait()
		f.settle()
		if p.took = f.now() - back; p.took > 15*time.Minute {
			f.Errorf("the pods and the overdue renewals took %s", p.took)
		}
		// The kubelet's backoff takes longer than the CA.
		if started-back > 5*time.Minute {
			f.Errorf("the last pod started after %s", started-back)
		}
	})
	f.phase("the next 20 hours", func(*phase) { time.Sleep(20 * time.Hour) })
}

// upgrade restarts the replicas of the authority, one after the other.
func upgrade(f *fleet) {
	f.warmUp()
	var pods sync.WaitGroup
	f.phase("until all pods run", func(p *phase) {
		pods.Go(func() { f.startPods(volumesPerNode/10, 10*time.Minute) })
		for _, r := range f.authority.replicas {
			time.Sleep(2 * time.Minute)
			r.end()
			time.Sleep(30 * time.Second)
			r.start()
		}
		pods.Wait()
		f.settle()
		if p.took = f.now() - p.from; p.took > 12*time.Minute {
			f.Errorf("the pods took %s", p.took)
		}
	})
}

// busy is start with an API server that has little time for reviews.
func busy(f *fleet) {
	f.api.takes *= 4
	f.each((*node).start)
	f.phase("the pods start", func(p *phase) {
		p.storm = true
		f.startPods(volumesPerNode, 2*time.Minute)
		if p.took = f.now() - p.from; p.took > time.Hour {
			f.Errorf("the last pod started after %s", p.took)
		}
	})
}

// rotation starts with new certificates, so that none is due before it ends: a
// request for a certificate could only be caused by the new roots.
func rotation(f *fleet) {
	f.mount(func(time.Duration) time.Duration { return 0 })
	f.each(func(n *node) {
		time.Sleep(sometime(rootsRefresh))
		n.start()
	})
	f.phase("before", func(*phase) { time.Sleep(time.Hour) })
	for _, step := range []struct {
		name  string
		roots []string
	}{{"both roots", []string{"old", "new"}}, {"the new root alone", []string{"new"}}} {
		f.phase(step.name, func(p *phase) {
			f.ca.set(func() { f.ca.roots = rootsNamed(step.roots...) })
			for f.known(len(step.roots)) < len(f.nodes) && f.now()-p.from < time.Hour {
				time.Sleep(time.Second)
			}
			p.took = f.now() - p.from
			time.Sleep(2*time.Hour - p.took)
			if p.took > (rootsRefresh+authorityRoots)*11/10+time.Second {
				f.Errorf("%s: it took %s until all nodes knew the roots", p.name, p.took)
			}
		})
	}
	if n := sum(f.authority.asked.slots); n > 0 {
		f.Errorf("the change of roots caused %d certificate requests", n)
	}
}

// known returns how many nodes know that many roots.
func (f *fleet) known(roots int) (count int) {
	for _, n := range f.nodes {
		n.mu.Lock()
		if len(n.roots.Own) == roots {
			count++
		}
		n.mu.Unlock()
	}
	return count
}
