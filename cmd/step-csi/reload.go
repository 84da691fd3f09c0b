package main

import (
	"context"
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
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/cmd/step-csi/reload"
)

const reloadUsage = `Usage: step-csi reload [flags] [-- PROGRAM [ARGUMENT…]]

Watches a volume, and tells a program that cannot watch it by itself when its
files have changed. It needs no root and no capability. It can be

  the program's parent     step-csi reload --dir /etc/tls --signal HUP -- nginx -g 'daemon off;'
  a sidecar that signals   step-csi reload --dir /etc/tls --signal HUP --process-name postgres
  one that runs a command  step-csi reload --dir /etc/tls --exec -- nats-server --signal reload=/run/nats.pid
  one that calls a URL     step-csi reload --dir /etc/tls --url http://127.0.0.1:9090/-/reload

As the parent it starts the program when the files are there, hands it the signals
that it gets, collects orphans if it is process 1, and exits as the program does:
with its exit status, or with 128+n if signal n has killed it. A sidecar also does
it once when it starts, but for signals that end programs.

Flags:

  --dir DIR             a directory to watch; give it again for another one
  --signal NAME         send the signal, such as HUP, USR1 or TERM, to the program,
  --pid-file FILE       or to the process whose id the file has in its first line,
  --process-name NAME   or to the processes of the name whose parents have another;
                        HUP, USR1 and the like only to a process that handles them
  --exec                run PROGRAM at each change, without a shell, and do not wrap it
  --url URL             call the URL; the answer must be a 2xx
  --method METHOD       by which it is called                       (POST)
  --debounce DURATION   after the first of several changes, wait    (1s)
  --timeout DURATION    kill a command, or end a call, after        (30s)

What fails is logged and tried again, after 1 s and then twice as long each time,
up to a minute, until it succeeds or the files change again. Files that are written
anew with the same contents are no change.
`

func reloadFiles(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, err := parseReload(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, reloadUsage)
		return err
	case err != nil:
		fmt.Fprintf(stderr, "step-csi reload: %v\n\n%s", err, reloadUsage)
		return errUsage
	}
	if err := setUpLogs(0); err != nil {
		return err
	}
	defer klog.Flush()
	return reload.Run(ctx, c)
}

func parseReload(args []string) (reload.Config, error) {
	var c reload.Config
	flags := flag.NewFlagSet("reload", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("dir", "", func(directory string) error {
		if directory == "" {
			return errors.New("it is empty")
		}
		c.Directories = append(c.Directories, directory)
		return nil
	})
	flags.Func("signal", "", func(name string) (err error) {
		c.Signal, err = parseSignal(name)
		return err
	})
	flags.StringVar(&c.PIDFile, "pid-file", "", "")
	flags.StringVar(&c.ProcessName, "process-name", "", "")
	execute := flags.Bool("exec", false, "")
	address := flags.String("url", "", "") // not parsed here: the error would have it in it
	flags.StringVar(&c.Method, "method", http.MethodPost, "")
	flags.DurationVar(&c.Debounce, "debounce", time.Second, "")
	flags.DurationVar(&c.Timeout, "timeout", 30*time.Second, "")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if *address != "" {
		var err error
		if c.URL, err = parseReloadURL(*address); err != nil {
			return c, fmt.Errorf("--url: %w", err)
		}
	}
	switch {
	case *execute && flags.NArg() == 0:
		return c, errors.New("--exec: name the command after --")
	case *execute:
		c.Exec = flags.Args()
	default:
		c.Program = flags.Args()
	}
	return c, c.Check()
}

// parseSignal takes HUP, SIGHUP and hup.
func parseSignal(name string) (syscall.Signal, error) {
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if s := unix.SignalNum("SIG" + name); s != 0 {
		return s, nil
	}
	return 0, fmt.Errorf("there is no signal %q; HUP and USR1 are some", name)
}

// parseReloadURL repeats nothing of the URL, which may have a password in it.
func parseReloadURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("it is not a URL such as http://127.0.0.1:9090/-/reload")
	}
	return u, nil
}
