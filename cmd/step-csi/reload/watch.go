package reload

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

const (
	// lookAgain is how often to look while a directory cannot be watched, such as
	// one that is not there.
	lookAgain = time.Second
	// lookAnyway is how often to look while all are watched: what is mounted at a
	// path comes and goes without an event.
	lookAnyway = 10 * time.Second
)

// watcher tells that something may have changed in directories. Whoever listens
// looks at what has.
type watcher struct {
	directories []string
	inotify     *fsnotify.Watcher // nil if the system has none left
}

func newWatcher(ctx context.Context, directories []string) *watcher {
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		klog.FromContext(ctx).Error(err, "No inotify (see fs.inotify.max_user_instances): looking at the files each second instead")
	}
	return &watcher{directories, inotify}
}

// run sends to changes, whose buffer holds one, until ctx ends.
func (w *watcher) run(ctx context.Context, changes chan<- struct{}) {
	var events <-chan fsnotify.Event
	var lost <-chan error
	if w.inotify != nil {
		defer w.inotify.Close()
		events, lost = w.inotify.Events, w.inotify.Errors
	}
	for {
		interval := lookAnyway
		if !w.watchAll() {
			interval = lookAgain
		}
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-lost: // too many events, so that some are lost
		case <-time.After(interval):
		}
		select {
		case changes <- struct{}{}:
		default: // is known already
		}
	}
}

// watchAll tells whether all directories are watched. To watch one again does
// nothing, unless it is another one by now.
func (w *watcher) watchAll() bool {
	if w.inotify == nil {
		return false
	}
	all := true
	for _, directory := range w.directories {
		if err := w.inotify.Add(directory); err != nil {
			all = false
		}
	}
	return all
}
