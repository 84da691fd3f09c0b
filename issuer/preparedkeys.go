package issuer

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/fair"
)

const (
	// mostPrepared is how many keys of one size are ready at most. It is about as many
	// pods as a kubelet starts at once.
	mostPrepared = 10
	// preparedTime is how long after its last use a size counts as used. Then its keys are
	// dropped.
	preparedTime = time.Hour
	// quietTime is how long after the last request for a key the next one is prepared: the
	// pods that have got their keys need the cores for the rest of their publish.
	quietTime = time.Second
	// mostUses is how many uses of a size are remembered.
	mostUses = 32
)

// preparedKeys are RSA keys that no pod has asked for yet, so that a pod that starts does
// not wait for one. A size has as many ready keys as it had uses within preparedTime, but at
// most mostPrepared. So there are no keys, and no goroutine, where pods use no RSA keys, and
// no more than one unused key for each used one.
//
// Keys are prepared one at a time, a second after the last use, while no pod's RSA key is
// generated or awaited, and on half of a core at most. A key in progress cannot be
// interrupted: a request that arrives does not wait for it, but shares the cores with it until
// it is ready.
type preparedKeys struct {
	// background runs the goroutine. Nothing is prepared if it is nil.
	background func(func(context.Context))
	generate   func(KeyType) (PrivateKey, error)
	// busy tells whether a pod's RSA key is generated or awaited.
	busy func() bool
	// wake has an element after something changed.
	wake chan struct{}

	mu      sync.Mutex
	running bool
	sizes   map[KeyType]*preparedSize
}

// preparedSize has the keys of one size.
type preparedSize struct {
	ready []PrivateKey
	// taken are the pods that took the keys that are not replaced yet, the first one first.
	taken []fair.Owner
	uses  []keyUse // the newest last
}

type keyUse struct {
	by fair.Owner
	at time.Time
}

// use records that the pod needs a key, and starts the goroutine if it is not running.
func (p *preparedKeys) use(o fair.Owner, t KeyType) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.background == nil {
		return
	}
	size := p.sizes[t]
	if size == nil {
		size = &preparedSize{}
		p.sizes[t] = size
	}
	size.use(o, time.Now())
	if !p.running {
		p.running = true
		p.background(p.run)
	}
}

// take returns a ready key, if there is one and the pod may have it.
func (p *preparedKeys) take(o fair.Owner, t KeyType) (PrivateKey, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := p.sizes[t]
	if size == nil || len(size.ready) == 0 || !size.mayTake(o) {
		return PrivateKey{}, false
	}
	last := len(size.ready) - 1
	key := size.ready[last]
	size.ready[last] = PrivateKey{}
	size.ready = size.ready[:last]
	size.taken = append(size.taken, o)
	return key, true
}

// count returns the number of ready keys.
func (p *preparedKeys) count(t KeyType) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if size := p.sizes[t]; size != nil {
		return len(size.ready)
	}
	return 0
}

// changed makes the goroutine look again.
func (p *preparedKeys) changed() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run prepares keys until no size is used any more, or ctx ends.
func (p *preparedKeys) run(ctx context.Context) {
	unused := false
	defer func() {
		if !unused {
			p.forget()
		}
	}()
	for ctx.Err() == nil {
		t, wait := p.next(time.Now())
		switch {
		case wait == 0:
			unused = true
			return
		case t == "" || p.busy():
			pause(ctx, wait, p.wake)
		default:
			began := time.Now()
			key, err := p.generate(t)
			if err != nil {
				klog.FromContext(ctx).Error(err, "Cannot prepare a key")
				pause(ctx, time.Minute, nil)
				continue
			}
			p.add(t, key)
			pause(ctx, time.Since(began), nil)
		}
	}
}

func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
}

// next drops the sizes that are not used any more. It returns a size that lacks a key, if
// there is one: the one with the fewest ready keys, and of several the fastest to generate.
// Otherwise, wait is when that can change, from now, if no pod uses a key. It is zero if no
// size is used: then the goroutine counts as ended, so that the next use starts another one.
func (p *preparedKeys) next(now time.Time) (t KeyType, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	quiet := time.Duration(0) // how much of quietTime is left
	for _, of := range KeyTypes() {
		size := p.sizes[of]
		if size == nil {
			continue
		}
		size.expire(now)
		if len(size.uses) == 0 {
			delete(p.sizes, of)
			continue
		}
		since := now.Sub(size.uses[len(size.uses)-1].at)
		quiet = max(quiet, quietTime-since)
		if left := preparedTime - since; wait == 0 || left < wait {
			wait = left
		}
		if len(size.ready) < min(len(size.uses), mostPrepared) && (t == "" || len(size.ready) < len(p.sizes[t].ready)) {
			t = of
		}
	}
	p.running = wait > 0
	if t != "" && quiet > 0 {
		return "", quiet
	}
	return t, wait
}

// add adds a key to those that are ready.
func (p *preparedKeys) add(t KeyType, key PrivateKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if size := p.sizes[t]; size != nil {
		size.ready = append(size.ready, key)
		size.taken = slices.Delete(size.taken, 0, min(1, len(size.taken)))
	}
}

// forget drops everything.
func (p *preparedKeys) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.sizes)
	p.running = false
}

// use remembers a use. If there are too many, it forgets the first use of the namespace with
// the most, and there of the pod with the most, so that no pod makes the others forgotten.
func (s *preparedSize) use(o fair.Owner, now time.Time) {
	s.expire(now)
	s.uses = append(s.uses, keyUse{o, now})
	if len(s.uses) <= mostUses {
		return
	}
	ofNamespace, ofPod := map[string]int{}, map[fair.Owner]int{}
	for _, u := range s.uses {
		ofNamespace[u.by.Namespace]++
		ofPod[u.by]++
	}
	first := 0
	for i, u := range s.uses {
		other := s.uses[first].by
		if cmp.Or(cmp.Compare(ofNamespace[u.by.Namespace], ofNamespace[other.Namespace]), cmp.Compare(ofPod[u.by], ofPod[other])) > 0 {
			first = i
		}
	}
	s.uses = slices.Delete(s.uses, first, first+1)
}

// expire forgets old uses.
func (s *preparedSize) expire(now time.Time) {
	old := 0
	for old < len(s.uses) && now.Sub(s.uses[old].at) >= preparedTime {
		old++
	}
	s.uses = slices.Delete(s.uses, 0, old)
}

// mayTake tells whether the pod may have a ready key. A namespace leaves the others what they
// used recently, up to an equal part of the keys, and so does a pod of a namespace. A key that
// was taken counts until it is replaced. A pod that has had its share waits for its turn to
// generate a key.
func (s *preparedSize) mayTake(o fair.Owner) bool {
	ofNamespaces, ofPods := map[string]int{o.Namespace: 0}, map[fair.Owner]int{o: 0}
	for _, u := range s.uses {
		ofNamespaces[u.by.Namespace]++
		if u.by.Namespace == o.Namespace {
			ofPods[u.by]++
		}
	}
	inNamespace, inPod := 0, 0
	for _, by := range s.taken {
		if by.Namespace == o.Namespace {
			inNamespace++
		}
		if by == o {
			inPod++
		}
	}
	most := share(o.Namespace, ofNamespaces, len(s.ready)+len(s.taken))
	return inNamespace < most && inPod < share(o, ofPods, most)
}

// share returns how many of n keys are for one of several users, at least one. uses are those
// of all users.
func share[T comparable](one T, uses map[T]int, n int) int {
	left := n
	for other, count := range uses {
		if other != one {
			left -= min(count, max(1, n/len(uses)))
		}
	}
	return max(1, left)
}
