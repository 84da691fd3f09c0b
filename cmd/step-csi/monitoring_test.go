package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// working is a program that is ready and live, unless its functions say otherwise.
type working struct {
	ready func() (string, error)
	live  func(context.Context) error
}

func (w working) Ready() (string, error) {
	if w.ready == nil {
		return "", nil
	}
	return w.ready()
}

func (w working) Live(ctx context.Context) error {
	if w.live == nil {
		return nil
	}
	return w.live(ctx)
}

func TestHealth(t *testing.T) {
	for name, test := range map[string]struct {
		path    string
		ready   error
		details string
		live    error
		status  int
		body    string
	}{
		"alive":                {"/livez", nil, "", nil, http.StatusOK, "ok\n"},
		"alive without the CA": {"/livez", errors.New("no issuer works"), "", nil, http.StatusOK, "ok\n"},
		"the socket is lost":   {"/livez", nil, "", errors.New("no such file"), http.StatusServiceUnavailable, "no such file\n"},
		"healthy":              {"/healthz", errors.New("no issuer works"), "", nil, http.StatusOK, "ok\n"},
		"ready":                {"/readyz", nil, "", nil, http.StatusOK, "ok\n"},
		"one issuer is down":   {"/readyz", nil, "issuer b: no route\n", nil, http.StatusOK, "ok\nissuer b: no route\n"},
		"not ready":            {"/readyz", errors.New("no issuer works"), "issuer a: no route\n", nil, http.StatusServiceUnavailable, "no issuer works\nissuer a: no route\n"},
		"unknown":              {"/", nil, "", nil, http.StatusNotFound, "404 page not found\n"},
	} {
		t.Run(name, func(t *testing.T) {
			answer := httptest.NewRecorder()
			p := working{ready: func() (string, error) { return test.details, test.ready }, live: func(context.Context) error { return test.live }}
			healthHandler(p, nil).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, test.path, nil))
			if answer.Code != test.status || answer.Body.String() != test.body {
				t.Errorf("%d %q", answer.Code, answer.Body)
			}
		})
	}
}

// Both commands have these metrics, and their names follow the conventions of
// Prometheus.
func TestCommonMetrics(t *testing.T) {
	registry := newRegistry()
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	answer := httptest.NewRecorder()
	healthHandler(working{}, registry).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{`step_csi_build_info{goversion="` + runtime.Version() + `",version="` + release() + `"} 1`, "\ngo_goroutines ", "\nprocess_open_fds "} {
		if !strings.Contains(answer.Body.String(), want) {
			t.Errorf("the metrics lack %q:\n%s", want, answer.Body)
		}
	}
}

func TestHealthAddress(t *testing.T) {
	if h, err := newHealth("", nil, prometheus.NewRegistry()); h != nil || err != nil {
		t.Errorf("without an address: %v, %v", h, err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := newHealth(taken.Addr().String(), nil, prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), "--http-address "+taken.Addr().String()) {
		t.Errorf("an address in use: %v", err)
	}
}

// When the plugin stops, it finishes the requests in flight and then closes the port.
func TestHealthStops(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	h, err := newHealth("127.0.0.1:0", working{ready: func() (string, error) { close(asked); <-release; return "", nil }}, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	address := h.listener.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { h.serve(ctx); close(stopped) }()
	answer := make(chan string)
	go func() {
		response, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answer <- string(body)
	}()
	<-asked
	stop()
	select {
	case <-stopped:
		t.Error("the server stopped with a request in flight")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if got := <-answer; got != "ok\n" {
		t.Errorf("the response: %q", got)
	}
	<-stopped
	if connection, err := net.Dial("tcp", address); err == nil {
		connection.Close()
		t.Error("the port is still open")
	}
}
