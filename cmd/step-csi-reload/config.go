package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
		c.directories = append(c.directories, directory)
		return nil
	})
	flags.Func("signal", "", func(name string) (err error) {
		c.signal, err = parseSignal(name)
		return err
	})
	flags.StringVar(&c.pidFile, "pid-file", "", "")
	flags.StringVar(&c.processName, "process-name", "", "")
	execute := flags.Bool("exec", false, "")
	// Parsed below: an error of the flag package would print the URL's password.
	address := flags.String("url", "", "")
	flags.StringVar(&c.method, "method", http.MethodPost, "")
	flags.DurationVar(&c.debounce, "debounce", time.Second, "")
	flags.DurationVar(&c.timeout, "timeout", 30*time.Second, "")
	printVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if *printVersion {
		return c, errVersion
	}
	if *address != "" {
		var err error
		if c.url, err = parseURL(*address); err != nil {
			return c, fmt.Errorf("--url: %w", err)
		}
	}
	if *execute && flags.NArg() == 0 {
		return c, errors.New("--exec: name the command after --")
	}
	if *execute {
		c.exec = flags.Args()
	} else {
		c.program = flags.Args()
	}
	return c, c.check()
}

// parseSignal accepts HUP, SIGHUP and hup.
func parseSignal(name string) (syscall.Signal, error) {
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if s := unix.SignalNum("SIG" + name); s != 0 {
		return s, nil
	}
	return 0, fmt.Errorf("unknown signal %q; use a name such as HUP or USR1", name)
}

// parseURL repeats no part of the URL in its error: the URL may contain a password.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("not a URL such as http://127.0.0.1:9090/-/reload")
	}
	return u, nil
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
