package main

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/flexstack/step-csi/issuer/panics"
)

// newRegistry has the metrics of every command: those of Go, of the process and of
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
