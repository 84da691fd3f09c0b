package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// healthStop is how long answers under way may take when the plugin stops.
const healthStop = time.Second

// health serves /livez, /readyz and /metrics in plain HTTP, as Kubernetes' own
// components do; /healthz is the older name of /livez: https://kubernetes.io/docs/reference/using-api/health-checks/.
type health struct {
	listener net.Listener
	server   *http.Server
}

// newHealth listens on address; an empty one turns it off.
func newHealth(address string, ready func() error, metrics prometheus.Gatherer) (*health, error) {
	if address == "" {
		return nil, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--http-address %s: %w", address, err)
	}
	return &health{listener, &http.Server{
		Handler:           healthHandler(ready, metrics),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    1 << 14,
	}}, nil
}

// healthHandler keeps being alive apart from being ready: to restart the plugin
// does not bring a CA back.
func healthHandler(ready func() error, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	alive := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /healthz", alive)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}

// serve answers until ctx ends, and finishes the answers under way.
func (h *health) serve(ctx context.Context) {
	if h == nil {
		return
	}
	klog.FromContext(ctx).Info("Serving health", "address", h.listener.Addr())
	failed := make(chan error, 1)
	go func() { failed <- h.server.Serve(h.listener) }()
	select {
	case err := <-failed:
		klog.FromContext(ctx).Error(err, "Health is no longer served")
		return
	case <-ctx.Done():
	}
	// Not with ctx: it has ended.
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthStop)
	defer cancel()
	if err := h.server.Shutdown(limit); err != nil {
		h.server.Close()
	}
	<-failed
}
