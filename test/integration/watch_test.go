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

// watching collects what a watch on the path sees.
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
	node.Eventually(w.t, 20*time.Second, "the event "+what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Contains(w.seen, what)
	})
}

// What programs see that watch a volume in the ways in which they watch those of
// the kubelet: its directory, or the link ..data in it, or a file. Both links lead
// a watch to what they stand for when it is made.
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
		node.Eventually(t, 20*time.Second, "a renewal", func() bool {
			now, err := os.Readlink(filepath.Join(target, "..data"))
			return err == nil && now != before
		})
		// The one event that programs wait for which know ..data.
		directory.waitFor("CREATE ..data")
		// The files before are touched when the new ones are there, and so before
		// the old ones are of no use.
		if rotation == 0 {
			for _, w := range []*watching{link, file} {
				w.waitFor("WRITE tls.crt")
				w.waitFor("CHMOD tls.crt")
			}
			continue
		}
		// Whoever has not looked again by then has a watch on what is removed now.
		link.waitFor("REMOVE ..data")
		file.waitFor("REMOVE tls.crt")
	}
	n.Unpublish(p)
}

// A program that watches the file itself, and follows the name again when it sees
// an event (such as controller-runtime's certwatcher), has each new certificate at
// once, and not only when the one after it comes.
func TestWatchOfAFileFollows(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
	n.Publish(p)
	path := filepath.Join(n.Target(p), "tls.crt")
	watcher, err := fsnotify.NewWatcher()
	node.Must(t, err)
	defer watcher.Close()
	node.Must(t, watcher.Add(path))
	loaded, err := os.ReadFile(path)
	node.Must(t, err)
	for range 3 {
		limit := time.After(30 * time.Second)
		for rotated := false; !rotated; {
			select {
			case event := <-watcher.Events:
				_ = watcher.Add(event.Name)
			case <-limit:
				t.Fatal("no event of a rotation")
			}
			now, err := os.ReadFile(path)
			node.Must(t, err)
			rotated = !bytes.Equal(now, loaded)
			loaded = now
		}
		// Not the one before the newest, which the event of its removal would give.
		time.Sleep(100 * time.Millisecond)
		if newest, err := os.ReadFile(path); err != nil || !bytes.Equal(newest, loaded) {
			t.Error("not the newest certificate was loaded")
		}
	}
	n.Unpublish(p)
}
