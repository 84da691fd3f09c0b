package fleet

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/fair"
	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// The timeouts and intervals of the plugin and the kubelet, with the names that they
// have there.
const (
	lifetime       = 24 * time.Hour
	publishTimeout = 100 * time.Second
	renewalTimeout = 2 * time.Minute
	rootsRefresh   = 5 * time.Minute

	// The kubelet's backoff for a volume that it could not mount.
	firstRemount   = 500 * time.Millisecond
	slowestRemount = 122 * time.Second
)

// volume is the state of a mounted volume that survives a restart.
type volume struct {
	validity renewal.Validity
}

// node is a plugin with its volumes.
type node struct {
	fleet *fleet

	scheduler *schedule.Scheduler
	stop      context.CancelFunc
	ends      sync.WaitGroup // the goroutines that stop ends

	mu      sync.Mutex
	volumes []*volume
	roots   issuer.Roots
	minute  time.Time // the minute that calls counts
	calls   int
	busiest int // the most calls in a minute

	// The client of the authority.
	turn   atomic.Uint32 // the replica of the last call
	failed float64       // calls, less half of those that succeeded
}

// start runs the plugin, which adopts the mounted volumes.
func (n *node) start() {
	ctx, stop := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	n.scheduler, n.stop = schedule.New(), stop
	for _, v := range n.volumes {
		n.keep(v)
	}
	n.ends.Go(func() { n.scheduler.Run(ctx) })
	n.ends.Go(func() { n.followRoots(ctx) })
}

// end kills the plugin. The volumes stay mounted.
func (n *node) end() {
	n.stop()
	n.ends.Wait()
}

func (n *node) keep(v *volume) {
	pod := strconv.FormatUint(rand.Uint64(), 10)
	n.scheduler.Add(pod, v.validity, func(ctx context.Context) (renewal.Validity, error) {
		ctx, cancel := context.WithTimeout(ctx, renewalTimeout)
		defer cancel()
		issued, err := n.sign(ctx, schedule.Renewal, fair.Owner{UID: pod})
		if err == nil {
			n.fleet.until(v.validity, time.Now())
			n.mu.Lock()
			v.validity = issued
			n.mu.Unlock()
		}
		return v.validity, err
	})
}

// sign requests a certificate from the authority.
func (n *node) sign(ctx context.Context, p schedule.Priority, pod fair.Owner) (issued renewal.Validity, err error) {
	err = n.scheduler.Call(ctx, p, pod, func(ctx context.Context) error {
		now := time.Now()
		n.asks(now)
		issued = issuedAt(now)
		return n.fleet.authority.sign(ctx, n, pod.UID)
	})
	return issued, err
}

// asks counts the calls per minute.
func (n *node) asks(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if minute := now.Truncate(time.Minute); !minute.Equal(n.minute) {
		n.minute, n.calls = minute, 0
	}
	n.calls++
	n.busiest = max(n.busiest, n.calls)
}

// overdue tells whether any certificate was due before the limit.
func (n *node) overdue(limit time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range n.volumes {
		if v.validity.Due().Before(limit) {
			return true
		}
	}
	return false
}

func issuedAt(now time.Time) renewal.Validity {
	serial := strconv.FormatUint(rand.Uint64(), 10)
	return renewal.Validity{Issued: now, NotAfter: now.Add(lifetime), Spread: renewal.SpreadOf(serial)}
}

// startPod is the kubelet: it retries until the volume of a new pod is mounted.
func (n *node) startPod() {
	pod := strconv.FormatUint(rand.Uint64(), 10)
	for pause := firstRemount; ; pause = min(2*pause, slowestRemount) {
		v, err := n.publish(pod)
		if err == nil {
			n.mu.Lock()
			n.volumes = append(n.volumes, v)
			n.mu.Unlock()
			n.keep(v)
			return
		}
		time.Sleep(pause)
	}
}

func (n *node) publish(pod string) (*volume, error) {
	ctx, cancel := context.WithTimeout(context.Background(), publishTimeout)
	defer cancel()
	issued, err := n.sign(ctx, schedule.Publish, fair.Owner{UID: pod})
	return &volume{issued}, err
}

func rootsNamed(names ...string) (roots issuer.Roots) {
	for _, name := range names {
		roots.Own = append(roots.Own, &x509.Certificate{Raw: []byte(name)})
	}
	return roots
}

// followRoots refreshes the roots, from the authority.
func (n *node) followRoots(ctx context.Context) {
	request := func(ctx context.Context) (issuer.Roots, error) { return n.fleet.authority.answerRoots(ctx, n) }
	followRoots(ctx, rootsRefresh, request, func(roots issuer.Roots) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.roots = roots
	})
}

// useRetry tells whether a failed call may be retried: gRPC stops retrying while most
// calls fail.
func (n *node) useRetry() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = min(n.failed+1, fullRetryBudget)
	return n.failed < fullRetryBudget/2
}

// gainRetry follows a call that the authority answered.
func (n *node) gainRetry() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = max(n.failed-0.5, 0)
}
