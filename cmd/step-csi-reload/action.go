package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// action tells the program to read its files again.
type action func(context.Context) error

// action returns what to do after a change. program is nil in a sidecar.
func (c config) action(program *os.Process) action {
	switch {
	case len(c.exec) > 0:
		return func(ctx context.Context) error { return execute(ctx, c.exec) }
	case c.url != nil:
		return func(ctx context.Context) error { return call(ctx, c.method, c.url) }
	case program != nil:
		return func(context.Context) error { return send(c.signal, program) }
	}
	return func(context.Context) error { return c.signalOthers() }
}

// execute runs the command. When ctx ends, it kills the command and the processes
// that the command has started.
func execute(ctx context.Context, command []string) error {
	p, err := start(command, &syscall.SysProcAttr{Setpgid: true})
	if err != nil {
		return err
	}
	end := context.AfterFunc(ctx, func() { _ = unix.Kill(-p.Pid, unix.SIGKILL) })
	defer end()
	if err := wait(p.Pid); err != nil {
		return fmt.Errorf("%s: %w", command[0], err)
	}
	return nil
}

// call calls the URL, without a proxy. Any response but a 2xx is an error, including
// a redirect. The error contains no user, password or query of the URL.
func call(ctx context.Context, method string, u *url.URL) error {
	request, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	where := method + " " + u.Host + u.Path
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // without the URL
	}
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	response.Body.Close()
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s: the response is %s, not 2xx", where, response.Status)
	}
	return nil
}
