package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/flexstack/step-csi/test/node"
)

// watching collects the events of a watch on a path.
type watching struct {
	t       *testing.T
	watcher *fsnotify.Watcher
	ended   sync.WaitGroup
	mu      sync.Mutex
	seen    []string
}

func watch(t *testing.T, path string) *watching {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	node.Must(t, err)
	node.Must(t, watcher.Add(path))
	w := &watching{t: t, watcher: watcher}
	w.ended.Go(func() {
		for event := range watcher.Events {
			w.mu.Lock()
			w.seen = append(w.seen, event.Op.String()+" "+filepath.Base(event.Name))
			w.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		node.Must(t, watcher.Close())
		w.ended.Wait()
	})
	return w
}

func (w *watching) waitFor(what string) {
	w.t.Helper()
	node.Eventually(w.t, time.Minute, "the event "+what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Contains(w.seen, what)
	})
}

// Programs watch a volume of the kubelet in three ways: the directory, the link
// ..data, or a file. A watch on a link watches the target that the link has at that
// time.
func TestSwapIsSeen(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
	n.Publish(p)
	target := n.Target(p)
	directory, link, file := watch(t, target), watch(t, filepath.Join(target, "..data")), watch(t, filepath.Join(target, "tls.crt"))
	for rotation := range 2 {
		before, err := os.Readlink(filepath.Join(target, "..data"))
		node.Must(t, err)
		node.Eventually(t, time.Minute, "a renewal", func() bool {
			now, err := os.Readlink(filepath.Join(target, "..data"))
			return err == nil && now != before
		})
		// Programs that know ..data wait for this event.
		directory.waitFor("CREATE ..data")
		// The previous files are touched once the new files are in place, so that
		// watches on the previous files fire while these are still valid.
		if rotation == 0 {
			for _, w := range []*watching{link, file} {
				w.waitFor("WRITE tls.crt")
				w.waitFor("CHMOD tls.crt")
			}
			continue
		}
		// A program that did not add its watch again now gets the event that its file
		// was removed.
		link.waitFor("REMOVE ..data")
		file.waitFor("REMOVE tls.crt")
	}
	n.Unpublish(p)
}

// A program that watches the file and adds its watch again after each event, like
// controller-runtime's certwatcher, loads each new certificate at once, and not one
// rotation late.
func TestWatchOfAFileFollows(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	// There is no other rotation before the last look at the files, also on a slow machine.
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "1m", "renew-before": "40s"}}
	n.Publish(p)
	path := filepath.Join(n.Target(p), "tls.crt")
	watcher, err := fsnotify.NewWatcher()
	node.Must(t, err)
	defer watcher.Close()
	node.Must(t, watcher.Add(path))
	loaded, err := os.ReadFile(path)
	node.Must(t, err)
	for range 3 {
		limit := time.After(2 * time.Minute)
		for rotated := false; !rotated; {
			select {
			case event := <-watcher.Events:
				_ = watcher.Add(event.Name)
			case <-limit:
				t.Fatal("no event for a rotation")
			}
			now, err := os.ReadFile(path)
			node.Must(t, err)
			rotated = !bytes.Equal(now, loaded)
			loaded = now
		}
		// The program must have loaded the newest certificate. Acting on the event of a
		// removal would load it one rotation late.
		time.Sleep(100 * time.Millisecond)
		if newest, err := os.ReadFile(path); err != nil || !bytes.Equal(newest, loaded) {
			t.Error("the program did not load the newest certificate")
		}
	}
	n.Unpublish(p)
}
