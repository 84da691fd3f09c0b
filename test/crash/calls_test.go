package crash

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// step applies the verdict to one system call, counted from 1. All other calls are
// made.
type step struct {
	number  int
	reads   bool // also counts calls that change nothing
	verdict verdict

	count int
	met   atomic.Pointer[call] // the call, once it has come
}

func (s *step) decide(c call) verdict {
	// close does not fail: the kernel releases the descriptor first (close(2)).
	if !s.reads && !c.changes || s.reads && c.name == "close" {
		return verdict{}
	}
	if s.count++; s.count != s.number {
		return verdict{}
	}
	s.met.Store(&c)
	return s.verdict
}

// operation is a change of a pod's volume that the kubelet asks for.
type operation struct {
	published bool // the volume is mounted before
	// try is one call of the kubelet.
	try func(n *victim, p node.Pod) error
	// finished tells whether the work that a successful try started is done.
	finished func(n *victim, p node.Pod) bool
	// whole are the file names that the volume may have during the operation.
	whole []names
	// gone is true if there is no volume after the operation.
	gone bool
}

func operations() map[string]operation {
	return map[string]operation{
		"publish": {
			try:      (*victim).TryPublish,
			finished: func(*victim, node.Pod) bool { return true },
			whole:    []names{usual},
		},
		// A renewal that also changes the file names.
		"rewrite": {
			published: true,
			try:       func(n *victim, p node.Pod) error { return n.TryPublish(rewritten(p)) },
			finished: func(n *victim, p node.Pod) bool {
				return n.Logs.Has(fmt.Sprintf(logs.Renewed+` pod="shop/%s"`, p.Name))
			},
			whole: []names{usual, other},
		},
		"unpublish": {
			published: true,
			try:       (*victim).TryUnpublish,
			finished:  func(*victim, node.Pod) bool { return true },
			whole:     []names{usual},
			gone:      true,
		},
	}
}

func newPod(name string) node.Pod {
	return node.Pod{Name: name, Attributes: usual.attributes(), Group: "2000"}
}

// rewritten is the pod with other names for its files.
func rewritten(p node.Pod) node.Pod {
	changed := p
	changed.Attributes = maps.Clone(p.Attributes)
	maps.Copy(changed.Attributes, other.attributes())
	return changed
}

// The process is killed before the first system call that changes something, then
// before the second, and so on, until the operation has no more such calls.
func TestKilledBeforeEveryCall(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for name, operation := range operations() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newVictim(t, ca)
			var met []string
			for number := 1; ; number++ {
				p := newPod(fmt.Sprint("web-", number))
				c := n.killedAt(operation, p, number)
				if t.Failed() {
					t.Fatalf("killed before change %d, %v, after %v", number, c, met)
				}
				if c == nil {
					break
				}
				met = append(met, c.name)
			}
			t.Logf("killed %d times: before each of %v", len(met), met)
			if len(met) < 3 {
				t.Error("that is too few: the calls are not met")
			}
			n.stop()
		})
	}
}

// killedAt kills the process before a call of the operation, and checks the volume
// after that, after a restart, and after the kubelet's next try. It returns the call,
// or nil if the operation has fewer.
func (n *victim) killedAt(o operation, p node.Pod, number int) *call {
	n.T.Helper()
	if n.Process == nil {
		n.startIntercepted(nil)
	}
	if o.published {
		n.Publish(p)
	}
	s := &step{number: number, verdict: verdict{kill: true}}
	n.calls.set(s.decide)
	if err := o.try(n, p); err == nil {
		node.Eventually(n.T, time.Minute, "the operation is done, or the process killed", func() bool {
			return s.met.Load() != nil || o.finished(n, p)
		})
	}
	n.calls.set(nil)
	if s.met.Load() != nil {
		n.ended()
		n.expectWhole(o, p)
		n.startIntercepted(nil)
		n.expectTracked(p)
	}
	n.expectRepaired(o, p)
	n.Unpublish(p)
	n.ExpectGone(p)
	return s.met.Load()
}

// expectWhole checks that the volume is complete, or not there where that is allowed.
func (n *victim) expectWhole(o operation, p node.Pod) {
	n.T.Helper()
	_, err := readAll(n.Target(p), o.whole...)
	if errors.Is(err, errNotMounted) && (!o.published || o.gone) {
		return
	}
	if err != nil {
		n.T.Errorf("%s: the volume: %v", p.Name, err)
	}
}

// expectReadable checks the same while the plugin is still working: the file names
// may change between two reads.
func (n *victim) expectReadable(o operation, p node.Pod) {
	n.T.Helper()
	var all error
	for _, names := range o.whole {
		_, err := read(n.Target(p), names)
		if err == nil || errors.Is(err, errNotMounted) && (!o.published || o.gone) {
			return
		}
		all = errors.Join(all, err)
	}
	n.T.Errorf("%s: the volume: %v", p.Name, all)
}

// expectTracked checks that the plugin knows the volume, if it is mounted.
func (n *victim) expectTracked(p node.Pod) {
	n.T.Helper()
	if !slices.Contains(n.Mounts(), n.Target(p)) {
		return
	}
	if trouble, err := n.Health(p); err != nil || len(trouble) > 0 {
		n.T.Errorf("%s is mounted: %v, %v", p.Name, trouble, err)
	}
}

// expectRepaired checks that the kubelet's next try repairs the volume.
func (n *victim) expectRepaired(o operation, p node.Pod) {
	n.T.Helper()
	if err := o.try(n, p); err != nil {
		n.T.Errorf("the kubelet's next try: %v", err)
	}
	if o.gone {
		n.ExpectGone(p)
		return
	}
	want := o.whole[len(o.whole)-1]
	node.Eventually(n.T, time.Minute, "the volume is as the pod wants it", func() bool {
		leaf, err := read(n.Target(p), want)
		return err == nil && leaf != nil
	})
	node.Eventually(n.T, time.Minute, "other files are gone", func() bool {
		_, err := os.Lstat(filepath.Join(n.Target(p), o.whole[0].Certificate))
		return want == o.whole[0] || errors.Is(err, os.ErrNotExist)
	})
	node.Eventually(n.T, time.Minute, "nothing is wrong", func() bool {
		trouble, err := n.Health(p)
		return err == nil && len(trouble) == 0
	})
	// Two renewals may have been due, and the second may still be written.
	node.Eventually(n.T, time.Minute, "the volume is whole", func() bool {
		_, err := readAll(n.Target(p), want)
		return err == nil
	})
}

// A process that is killed while it starts leaves the volumes as they are, and the
// next process removes everything else that it left.
func TestKilledBeforeEveryCallOfTheStart(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	n.start()
	p := newPod("web-0")
	n.Publish(p)
	var met []string
	for number := 1; ; number++ {
		n.kill() // the same leftovers each time
		s := &step{number: number, verdict: verdict{kill: true}}
		connected := n.Logs.Count(logs.Connected)
		n.startIntercepted(s.decide)
		node.Eventually(t, time.Minute, "the process is ready, or killed", func() bool {
			return s.met.Load() != nil || n.Logs.Count(logs.Connected) > connected
		})
		c := s.met.Load()
		if c == nil {
			t.Logf("killed %d times: before each of %v", len(met), met)
			break
		}
		met = append(met, c.name)
		n.ended()
		if _, err := readAll(n.Target(p), usual); err != nil {
			t.Fatalf("killed before change %d of the start, after %v: %v", number, met, err)
		}
		n.start()
		n.expectTracked(p)
	}
	n.calls.set(nil)
	n.expectTracked(p)
	n.Unpublish(p)
	n.ExpectGone(p)
	n.stop()
}

// Each system call fails once. A mounted volume stays, a failed publish leaves
// nothing, and the kubelet's next try succeeds without a restart.
func TestEveryCallFails(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for name, operation := range operations() {
		for _, errno := range []unix.Errno{unix.ENOSPC, unix.EINTR, unix.EBUSY} {
			t.Run(name+" "+unix.ErrnoName(errno), func(t *testing.T) {
				t.Parallel()
				n := newVictim(t, ca)
				n.startIntercepted(nil)
				before := n.openFiles()
				var met []string
				for number := 1; ; number++ {
					p := newPod(fmt.Sprint("web-", number)).With("duration", "1h")
					c := n.failedAt(operation, p, number, errno)
					if t.Failed() {
						t.Fatalf("call %d, %v, failed, after %v", number, c, met)
					}
					if c == nil {
						break
					}
					met = append(met, c.name)
				}
				t.Logf("%d calls failed: each of %v", len(met), met)
				if len(met) < 5 {
					t.Error("that is too few: the calls are not met")
				}
				node.Eventually(t, time.Minute, fmt.Sprintf("no more open files than at first: %q", before), func() bool {
					return len(n.openFiles()) <= len(before)
				})
				n.stop()
			})
		}
	}
}

// failedAt makes one call of the operation fail. It returns the call, or nil if the
// operation has fewer.
func (n *victim) failedAt(o operation, p node.Pod, number int, errno unix.Errno) *call {
	n.T.Helper()
	if o.published {
		n.Publish(p)
	}
	s := &step{number: number, reads: true, verdict: verdict{errno: errno}}
	n.calls.set(s.decide)
	err := o.try(n, p)
	if err == nil {
		node.Eventually(n.T, time.Minute, "the operation is done, or has failed", func() bool {
			return s.met.Load() != nil || o.finished(n, p)
		})
	}
	n.calls.set(nil)
	if err != nil && o.published && !o.gone {
		n.expectNotFinal(err)
	}
	n.expectReadable(o, p)
	if err != nil && !o.published {
		n.ExpectGone(p)
	}
	n.expectRepaired(o, p)
	n.Unpublish(p)
	n.ExpectGone(p)
	return s.met.Load()
}

// expectNotFinal checks the error of a republish: after one that the kubelet takes as
// final, it removes the directory under the running pod. See
// https://github.com/kubernetes/kubernetes/issues/121271.
func (n *victim) expectNotFinal(err error) {
	n.T.Helper()
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
	default:
		n.T.Errorf("the kubelet takes this error of a republish as final: %v", err)
	}
}

// Whatever fails in a republish, by a process that made the volume and by one that
// found it: the pod keeps its volume, and the next republish is in order.
func TestEveryCallOfARepublishFails(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENOMEM, unix.EINTR, unix.EACCES} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			t.Parallel()
			n := newVictim(t, ca)
			n.startIntercepted(nil)
			p := newPod("web-0")
			n.Publish(p)
			for _, known := range []bool{true, false} {
				if !known { // the record is damaged, so that the next process does not adopt the volume
					n.changeRecord(p, func(map[string]any) any { return "" })
					n.kill()
					n.startIntercepted(nil)
				}
				number := 1
				for ; ; number++ {
					s := &step{number: number, reads: true, verdict: verdict{errno: errno}}
					n.calls.set(s.decide)
					err := n.TryPublish(p)
					n.calls.set(nil)
					if err != nil {
						n.expectNotFinal(err)
					}
					if _, err := readAll(n.Target(p), usual); err != nil {
						t.Fatal(err)
					}
					if s.met.Load() == nil {
						break
					}
				}
				if number < 4 {
					t.Errorf("%d calls failed: that is too few", number-1)
				}
				n.Publish(p)
				node.Eventually(t, time.Minute, "nothing is wrong", func() bool {
					trouble, err := n.Health(p)
					return err == nil && len(trouble) == 0
				})
			}
			n.Unpublish(p)
			n.stop()
		})
	}
}

// openFiles are the files and mounts that the process holds open.
func (n *victim) openFiles() []string {
	directory := fmt.Sprintf("/proc/%d/fd", n.Process.Process.Pid)
	entries, err := os.ReadDir(directory)
	node.Must(n.T, err)
	var open []string
	for _, entry := range entries {
		path, err := os.Readlink(filepath.Join(directory, entry.Name()))
		if err == nil && (strings.HasPrefix(path, "/") || strings.Contains(path, "fscontext")) {
			open = append(open, path)
		}
	}
	return open
}
