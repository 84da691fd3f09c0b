package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

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
