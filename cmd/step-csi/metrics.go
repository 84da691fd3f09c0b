package main

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// newRegistry has the metrics that all commands have: Go's, the process's, and
// what was built.
func newRegistry() *prometheus.Registry {
	built := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "step_csi_build_info",
		Help:        "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": release(), "goversion": runtime.Version()},
	}, func() float64 { return 1 })
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), built)
	return registry
}
