package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// pollUnwatched is the polling interval while a directory is not watched, for
	// example because it does not exist.
	pollUnwatched = time.Second
	// pollWatched is the polling interval while all directories are watched: mounting
	// and unmounting at a path causes no event.
	pollWatched = 10 * time.Second
)

// watch sends to changes, whose buffer holds one, whenever files in the directories
// may have changed, until ctx ends. The receiver reads the files to find out.
func watch(ctx context.Context, log *slog.Logger, directories []string, changes chan<- struct{}) {
	var events <-chan fsnotify.Event
	var overflows <-chan error
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		log.Error("Cannot use inotify; polling the files every second (fs.inotify.max_user_instances may be too low)", "err", err)
	} else {
		defer inotify.Close()
		events, overflows = inotify.Events, inotify.Errors
	}
	for {
		interval := pollUnwatched
		if inotify != nil && addAll(log, inotify, directories) {
			interval = pollWatched
		}
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-overflows: // the kernel dropped events
		case <-time.After(interval):
		}
		select {
		case changes <- struct{}{}:
		default: // the receiver has not yet handled the previous one
		}
	}
}

// addAll watches the directories, and returns false if it could not watch all of
// them. Adding a directory again has no effect, unless another directory is at its
// path now.
func addAll(log *slog.Logger, inotify *fsnotify.Watcher, directories []string) bool {
	return recovered(log, func() (err error) {
		for _, directory := range directories {
			err = errors.Join(err, inotify.Add(directory))
		}
		return err
	}) == nil
}
