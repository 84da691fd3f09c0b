package main

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/panics"
)

// healthStop is how long requests in flight may take when the process stops.
const healthStop = time.Second

// health serves /livez, /readyz and /metrics over HTTP. /healthz is the older name of
// /livez; see https://kubernetes.io/docs/reference/using-api/health-checks/.
type health struct {
	listener *connections
	server   *http.Server
}

// program is what a command runs.
type program interface {
	// Ready tells whether the program is ready. details has a line for each part of it that
	// does not work, also while the program as a whole is ready.
	Ready() (details string, err error)
	// Live returns an error if only a new process can work. It may hang if this one does.
	Live(context.Context) error
}

// newHealth listens on the address. It returns nil for an empty address. Every pod of
// the cluster may be able to connect: the limits keep the memory of the process bounded
// and the kubelet's probes answered, whatever clients do.
func newHealth(address string, p program, registry *prometheus.Registry) (*health, error) {
	if address == "" {
		return nil, nil
	}
	listener, err := listenBounded(address)
	if err != nil {
		return nil, fmt.Errorf("--http-address %s: %w", address, err)
	}
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "step_csi_http_connections_evicted_total",
		Help: "Connections to the port of health and metrics that were closed in favor of new ones, because there were too many.",
	}, listener.countEvicted))
	return &health{listener, &http.Server{
		Handler:        healthHandler(p, registry),
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   10 * time.Second,
		IdleTimeout:    time.Minute,
		MaxHeaderBytes: 1 << 13,
	}}, nil
}

// healthHandler returns the handler. Only readiness depends on the CA: restarting the
// process would not help.
func healthHandler(p program, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	live := &liveness{check: p.Live}
	alive := func(w http.ResponseWriter, r *http.Request) {
		if err := live.probe(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /healthz", alive)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		details, err := p.Ready()
		if err != nil {
			http.Error(w, strings.TrimSpace(err.Error()+"\n"+details), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "ok\n", details)
	})
	mux.Handle("GET /metrics", newExposition(metrics))
	return mux
}

// serve serves until ctx ends, and then waits for the requests in flight.
func (h *health) serve(ctx context.Context) {
	if h == nil {
		return
	}
	klog.FromContext(ctx).Info("Serving health", "address", h.listener.Addr())
	failed := make(chan error, 1)
	go func() { failed <- h.server.Serve(h.listener) }()
	select {
	case err := <-failed:
		klog.FromContext(ctx).Error(err, "Serving health failed")
		return
	case <-ctx.Done():
	}
	// Not from ctx, which has ended.
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthStop)
	defer cancel()
	if err := h.server.Shutdown(limit); err != nil {
		h.server.Close()
	}
	<-failed
	h.listener.closeAll()
}

// newRegistry returns the metrics of every command: those of Go, of the process and of
// the build, and the counter of panics.
func newRegistry() *prometheus.Registry {
	built := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "step_csi_build_info",
		Help:        "Always 1; the labels tell the version.",
		ConstLabels: prometheus.Labels{"version": release(), "goversion": runtime.Version()},
	}, func() float64 { return 1 })
	recovered := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "step_csi_panics_total",
		Help: "Panics that were recovered; each is a defect, see the log.",
	}, func() float64 { return float64(panics.Total()) })
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), built, recovered)
	return registry
}
