// Package reload tells a program that it has to read its files again, for
// programs that cannot notice by themselves: it watches directories whose files
// are replaced as one, as those of a volume are, and sends a signal, runs a
// command or calls a URL when their contents have changed.
//
// It can also be the parent of that program, and then behaves as if it were the
// program: signals go on to it, and its exit status is the command's.
package reload

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

// Config is what is watched, and what is done then.
type Config struct {
	// Directories to watch, at least one.
	Directories []string
	// Program is started, and waited for. It is empty beside Exec, PIDFile and
	// ProcessName.
	Program []string

	// Signal is sent to Program, or to the process that PIDFile or ProcessName
	// names; 0 stands for none.
	Signal               syscall.Signal
	PIDFile, ProcessName string
	// Exec is a command to run instead.
	Exec []string
	// URL is called instead, with Method.
	URL    *url.URL
	Method string

	// Debounce is how long to wait after the first of several changes.
	Debounce time.Duration
	// Timeout bounds a signal, a command or a call.
	Timeout time.Duration
}

// Check says what cannot work.
func (c Config) Check() error {
	targets := count(len(c.Program) > 0, c.PIDFile != "", c.ProcessName != "")
	switch {
	case len(c.Directories) == 0:
		return errors.New("name a directory to watch: --dir")
	case count(c.Signal != 0, len(c.Exec) > 0, c.URL != nil) != 1:
		return errors.New("say what to do when files have changed, by one of --signal, --exec and --url")
	case c.Signal != 0 && targets != 1:
		return errors.New("--signal needs one to send it to: a program after --, --pid-file or --process-name")
	case c.Signal == 0 && (c.PIDFile != "" || c.ProcessName != ""):
		return errors.New("--pid-file and --process-name are for --signal only")
	case c.Debounce < 0:
		return fmt.Errorf("--debounce: %s is less than nothing", c.Debounce)
	case c.Timeout <= 0:
		return fmt.Errorf("--timeout: %s is too short", c.Timeout)
	}
	return nil
}

func count(all ...bool) (n int) {
	for _, one := range all {
		if one {
			n++
		}
	}
	return n
}

// Run waits until there are files in all directories, starts the program if
// there is one, and tells of each change until ctx ends. With a program it
// returns only when that has ended: nil if it exited with 0, else an ExitStatus.
func Run(ctx context.Context, c Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	for i, directory := range c.Directories {
		c.Directories[i] = filepath.Clean(directory)
	}
	// The program, and not ctx, says when it is over.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var ending sync.WaitGroup
	defer ending.Wait()
	defer stop()
	changes := make(chan struct{}, 1)
	w := newWatcher(ctx, c.Directories)
	ending.Go(func() { w.run(background, changes) })

	l := &loop{
		contents: func() (digest, error) { return contents(c.Directories) },
		changes:  changes, debounce: c.Debounce, timeout: c.Timeout,
	}
	if !l.await(ctx) {
		return nil
	}
	klog.FromContext(ctx).Info("Watching", "directories", c.Directories)
	if len(c.Program) > 0 {
		return c.wrap(ctx, func(act action) { ending.Go(func() { l.run(background, act) }) })
	}
	// What has changed while nobody watched is not known: so once at first. But a
	// signal that ends a program would end one that has just started.
	l.due = c.Signal == 0 || !ends(c.Signal)
	l.run(ctx, c.action(nil))
	return nil
}
