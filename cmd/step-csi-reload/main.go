// Command step-csi-reload tells a program to read its files again when they have
// changed, for programs that cannot watch files themselves. It watches directories
// whose files are replaced all at once, as in a volume of step-csi, and then sends
// a signal, runs a command or calls a URL.
//
// It can also be the parent of that program. Then it behaves like the program: it
// forwards signals to the program and exits with the program's exit status.
//
// Users copy this binary into their images, so it stays small: it links only the
// standard library, fsnotify and golang.org/x/sys.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
)

const usage = `Usage: step-csi-reload [flags] [-- PROGRAM [ARGUMENT…]]

Watches directories and tells a program when their files have changed. It needs
neither root nor a capability. Use it as

  the program's parent     step-csi-reload --dir /etc/tls --signal HUP -- nginx -g 'daemon off;'
  a sidecar that signals   step-csi-reload --dir /etc/tls --signal HUP --process-name postgres
  a sidecar with a command step-csi-reload --dir /etc/tls --exec -- nats-server --signal reload=/run/nats.pid
  a sidecar with a URL     step-csi-reload --dir /etc/tls --url http://127.0.0.1:9090/-/reload

As the parent, it starts the program once the files exist, forwards signals to the
program, reaps orphans if it is process 1, and exits with the program's exit status,
or with 128+n if signal n killed the program. A sidecar also acts once when it
starts, unless its signal ends programs (TERM, INT, QUIT, KILL).

Flags:

  --dir DIR             a directory to watch; repeat the flag for more directories
  --signal NAME         send this signal, such as HUP, USR1 or TERM, to PROGRAM,
  --pid-file FILE       or to the process whose ID is in the first line of FILE,
  --process-name NAME   or to each process called NAME whose parent is not called
                        NAME. Signals other than TERM, INT, QUIT and KILL are sent
                        only to a process that has a handler for them
  --exec                run PROGRAM after each change, without a shell, instead of
                        being its parent
  --url URL             call this URL; the response status must be 2xx
  --method METHOD       the HTTP method for --url                  (POST)
  --debounce DURATION   time to wait after the first of several changes (1s)
  --timeout DURATION    time after which a command is killed or a call fails (30s)
  --logging-format FORMAT  the format of the log: text or json     (text)
  --version             print the version

A failed reload is logged and retried, after 1 s at first and then after twice as
long each time, up to a minute, until it succeeds or the files change again. A
rewrite of the files with the same contents is not a change.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run returns the exit status: 2 for a wrong command line, 1 for other errors of
// its own, and otherwise the program's.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case errors.Is(err, errVersion):
		fmt.Fprintln(stdout, "step-csi-reload", version())
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "step-csi-reload: %v\n\n%s", err, usage)
		return 2
	}
	err = reload(ctx, newLogger(stderr, c.json), c)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintf(stderr, "step-csi-reload: %v\n", err)
	return 1
}

func newLogger(stderr io.Writer, inJSON bool) *slog.Logger {
	if !inJSON {
		return slog.New(slog.NewTextHandler(stderr, nil))
	}
	return slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{
		// Otherwise a duration would be a number of nanoseconds.
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindDuration {
				return slog.String(a.Key, a.Value.Duration().String())
			}
			return a
		},
	}))
}

// buildVersion is set by the linker (-X main.buildVersion=v1.2.3) when an image is
// built, where Go cannot read the version from git.
var buildVersion string

func version() string {
	v := buildVersion
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	return fmt.Sprintf("%s %s %s/%s", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
