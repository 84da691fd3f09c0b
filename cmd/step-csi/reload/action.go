package reload

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
)

// action is what to do after a change. program is the wrapped one, if there is
// one.
func (c Config) action(program *os.Process) action {
	switch {
	case len(c.Exec) > 0:
		return func(ctx context.Context) error { return execute(ctx, c.Exec) }
	case c.URL != nil:
		return func(ctx context.Context) error { return call(ctx, c.Method, c.URL) }
	case program != nil:
		return func(context.Context) error { return send(c.Signal, program) }
	}
	return func(context.Context) error { return c.signalOthers() }
}

// call accepts only a success as an answer, and follows nowhere.
func call(ctx context.Context, method string, u *url.URL) error {
	request, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	answer, err := client.Do(request)
	// What the URL has in it beside the host and the path may be a secret.
	where := method + " " + u.Host + u.Path
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("%s: the answer is %s", where, answer.Status)
	}
	return nil
}
