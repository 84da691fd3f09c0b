package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/node"
)

const (
	// Without -soak, the test ends after this many kills, or after most.
	kills = 1000
	most  = 110 * time.Second
	// slowest limits the estimate of how long a start takes.
	slowest = 200 * time.Millisecond
	// podsAtOnce is the number of pods that exist at the same time.
	podsAtOnce = 12
)

// storm is a node whose plugin is killed again and again while pods come and go, and
// readers check their volumes.
type storm struct {
	*victim
	seed uint64

	mu   sync.Mutex
	held map[string]bool // by target: volumes that were published and not yet unpublished

	published, unpublished, renewed, checked atomic.Int64
}

// The process is killed at random moments, under a load of publishes, renewals,
// changes of the CA's roots, and unpublishes, while readers check the volumes.
func TestRandomKills(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	// Roots come and go: ca.crt is rewritten in every volume.
	ca.Intercept(moreRoots(t, 1, func() bool { return time.Now().Unix()%6 < 3 }))
	s := &storm{victim: newVictim(t, ca), seed: *seed, held: map[string]bool{}}
	if s.seed == 0 {
		s.seed = rand.Uint64()
	}
	t.Logf("to repeat it: go test ./test/crash -run RandomKills -seed %d", s.seed)
	begin := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	reading, stopReading := context.WithCancel(context.Background())
	var kubelets, readers sync.WaitGroup
	end := func() {
		stop()
		kubelets.Wait()
		stopReading()
		readers.Wait()
	}
	defer end()
	for i := range uint64(podsAtOnce) {
		kubelets.Go(func() { s.keepPods(ctx, i) })
	}
	for range 2 {
		readers.Go(func() { s.keepReading(reading) })
	}
	killed := s.keepKilling(begin)
	s.start()
	renewed := s.renewed.Load()
	node.Eventually(t, time.Minute, "renewals by the last process", func() bool { return s.renewed.Load() > renewed+podsAtOnce || t.Failed() })
	s.expectAllTracked()
	end()
	t.Logf("%d kills in %s: %d volumes published, %d rotations seen, %d unpublished, %d times read",
		killed, time.Since(begin).Round(time.Second), s.published.Load(), s.renewed.Load(), s.unpublished.Load(), s.checked.Load())
	if left := s.Mounts(); len(left) > 0 {
		t.Errorf("%d mounts are left: %q", len(left), left)
	}
	s.stop()
	if pods, err := os.ReadDir(filepath.Join(s.KubeletDir, "pods")); err != nil || len(pods) > 0 {
		t.Errorf("left of the pods: %v, %v", pods, err)
	}
}

func (s *storm) random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, stream)) }

// keepKilling kills one process after the other: some while they start, most soon
// after, and a few later.
func (s *storm) keepKilling(begin time.Time) (killed int) {
	s.T.Helper()
	random := s.random(1 << 32)
	s.start()
	start := 20 * time.Millisecond // an estimate of how long a start takes
	for !s.T.Failed() && (*soak > 0 && time.Since(begin) < *soak || *soak == 0 && killed < kills && time.Since(begin) < most) {
		life := time.Duration(random.Float64() * 2 * float64(start))
		switch random.IntN(48) {
		case 0:
			life += 500 * time.Millisecond
		case 1, 2, 3, 4:
			life += 3 * start
		}
		time.Sleep(life)
		s.kill()
		killed++
		launched := time.Now()
		s.Launch()
		if killed%20 == 1 {
			s.WaitServing()
			start = min(max(time.Since(launched), start/2), start*2, slowest)
		}
	}
	s.kill()
	s.T.Logf("a start took about %s", start.Round(time.Millisecond))
	return killed
}

// keepPods publishes, republishes and unpublishes one pod after the other.
func (s *storm) keepPods(ctx context.Context, number uint64) {
	random := s.random(number)
	for generation := 0; ctx.Err() == nil && !s.T.Failed(); generation++ {
		p := newPod(fmt.Sprintf("web-%d-%d", number, generation))
		p = p.With("duration", []string{"2s", "3s", "5s"}[random.IntN(3)])
		p = p.With("reuse-private-key", []string{"true", "false"}[random.IntN(2)])
		if random.IntN(5) == 0 { // it is deleted before it runs
			_ = s.TryPublish(p)
		} else {
			s.insist(func() error { return s.TryPublish(p) })
			s.published.Add(1)
			s.hold(p, true)
			for lives := random.IntN(6); lives > 0 && ctx.Err() == nil; lives-- {
				time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond)
				if random.IntN(2) == 0 {
					p = p.With("service-names", fmt.Sprint("web-", lives))
				}
				s.insist(func() error { return s.TryPublish(p) })
			}
			s.hold(p, false)
		}
		s.insist(func() error { return s.TryUnpublish(p) })
		s.unpublished.Add(1)
		if _, err := os.Lstat(s.Target(p)); !errors.Is(err, fs.ErrNotExist) {
			s.T.Errorf("%s: the target is still there: %v", p.Name, err)
		}
		if err := os.RemoveAll(filepath.Join(s.KubeletDir, "pods", p.ID())); err != nil {
			s.T.Error(err)
		}
	}
}

// insist tries until it succeeds, as the kubelet does. The only error allowed is that
// the plugin is not running.
func (s *storm) insist(try func() error) {
	for !s.T.Failed() {
		err := try()
		if err == nil {
			return
		}
		if status.Code(err) != codes.Unavailable {
			s.T.Error(err)
		}
	}
}

func (s *storm) hold(p node.Pod, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if held {
		s.held[s.Target(p)] = true
	} else {
		delete(s.held, s.Target(p))
	}
}

func (s *storm) holds(target string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[target]
}

// keepReading reads all volumes, including those that are being published or
// unpublished.
func (s *storm) keepReading(ctx context.Context) {
	serials := map[string]string{}
	for ctx.Err() == nil && !s.T.Failed() {
		targets, err := filepath.Glob(filepath.Join(s.KubeletDir, "pods/*/volumes/*/*/mount"))
		if err != nil {
			s.T.Error(err)
		}
		for _, target := range targets {
			held := s.holds(target)
			leaf, err := read(target, usual)
			switch {
			case err == nil:
				serial := leaf.SerialNumber.String()
				if before := serials[target]; before != "" && before != serial {
					s.renewed.Add(1)
				}
				serials[target] = serial
			case errors.Is(err, errNotMounted) && (!held || !s.holds(target)):
			default:
				s.T.Errorf("%s: %v", target, err)
			}
			s.checked.Add(1)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// expectAllTracked checks that the plugin knows every volume that a pod has.
func (s *storm) expectAllTracked() {
	s.T.Helper()
	for _, path := range s.Mounts() {
		name := filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(path)))))
		// A volume that is being published is mounted before the plugin knows it.
		held := s.holds(path)
		if trouble, err := s.Health(node.Pod{UID: name}); held && (err != nil || unread(trouble)) && slices.Contains(s.Mounts(), path) && s.holds(path) {
			s.T.Errorf("%s is mounted: %v, %v", name, trouble, err)
		}
	}
}
