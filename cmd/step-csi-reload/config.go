package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// config says what to watch, and what to do after a change: exactly one of signal,
// exec and url is set.
type config struct {
	directories []string // at least one
	program     []string // to start and to be the parent of; may be empty

	// signal goes to program, or to the process that pidFile or processName names.
	signal               syscall.Signal
	pidFile, processName string
	exec                 []string // a command
	url                  *url.URL
	method               string // for url

	debounce time.Duration // from the first of several changes to the action
	timeout  time.Duration // of one action

	json bool // logs in JSON
}

var errVersion = errors.New("--version")

// parse reads the command line. Its error is flag.ErrHelp or errVersion if the user
// asks for those.
func parse(args []string) (config, error) {
	var c config
	flags := flag.NewFlagSet("step-csi-reload", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("dir", "", func(directory string) error {
		if directory == "" {
			return errors.New("the directory is empty")
		}
		c.directories = append(c.directories, filepath.Clean(directory))
		return nil
	})
	flags.Func("signal", "", func(name string) error { // HUP, SIGHUP or hup
		c.signal = unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
		if c.signal == 0 {
			return fmt.Errorf("unknown signal %q; use a name such as HUP or USR1", name)
		}
		return nil
	})
	flags.StringVar(&c.pidFile, "pid-file", "", "")
	flags.StringVar(&c.processName, "process-name", "", "")
	execute := flags.Bool("exec", false, "")
	address := flags.String("url", "", "")
	flags.StringVar(&c.method, "method", http.MethodPost, "")
	flags.DurationVar(&c.debounce, "debounce", time.Second, "")
	flags.DurationVar(&c.timeout, "timeout", 30*time.Second, "")
	flags.Func("logging-format", "", func(format string) error {
		c.json = format == "json"
		if !c.json && format != "text" {
			return errors.New("the formats are text and json")
		}
		return nil
	})
	printVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if *printVersion {
		return c, errVersion
	}
	if *address != "" {
		u, err := url.Parse(*address)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			// The error repeats no part of the URL: the URL may contain a password.
			return c, errors.New("--url: not a URL such as http://127.0.0.1:9090/-/reload")
		}
		c.url = u
	}
	switch {
	case !*execute:
		c.program = flags.Args()
	case flags.NArg() == 0:
		return c, errors.New("--exec: name the command after --")
	default:
		c.exec = flags.Args()
	}
	return c, c.check()
}

// check returns an error for a combination of flags that cannot work.
func (c config) check() error {
	targets := count(len(c.program) > 0, c.pidFile != "", c.processName != "")
	switch {
	case len(c.directories) == 0:
		return errors.New("name a directory to watch with --dir")
	case count(c.signal != 0, len(c.exec) > 0, c.url != nil) != 1:
		return errors.New("choose what to do after a change: exactly one of --signal, --exec and --url")
	case c.signal != 0 && targets != 1:
		return errors.New("--signal needs exactly one target: a program after --, --pid-file or --process-name")
	case c.signal == 0 && (c.pidFile != "" || c.processName != ""):
		return errors.New("--pid-file and --process-name work only with --signal")
	case c.debounce < 0:
		return fmt.Errorf("--debounce: %s is negative", c.debounce)
	case c.timeout <= 0:
		return fmt.Errorf("--timeout: %s is not positive", c.timeout)
	}
	return nil
}

func count(conditions ...bool) (n int) {
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}
