package main

import (
	"context"
	"flag"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// process has the flags that the node plugin and the registration authority share.
type process struct {
	config, httpAddress string
	verbosity           int

	checkConfig bool
	fileSources fileSources
}

func (p *process) addFlags(flags *flag.FlagSet) {
	flags.StringVar(&p.config, "config", "/etc/step-csi/step-csi.yaml", "configuration `FILE`")
	flags.StringVar(&p.httpAddress, "http-address", "", "serve /livez, /readyz and /metrics at `ADDR`, such as :9808; off by default")
	flags.BoolVar(&p.checkConfig, "check-config", false, "check the configuration and its files like a start, without network access, print the result, and exit")
	p.fileSources = fileSources{}
	flags.Var(p.fileSources, "file-source", "with --check-config: say in errors where a file comes from, as `PATH=TEXT`; may be repeated")
	flags.IntVar(&p.verbosity, "v", 0, "log verbosity `N`; 4 logs every call")
}

// start hardens the process, and then reads the configuration and sets up logs.
func (p *process) start(check func(*configFile, string) (*config, error), keep ...cap.Value) (*config, error) {
	if err := harden(keep...); err != nil {
		return nil, err
	}
	c, err := loadConfig(p.config, check)
	if err != nil {
		return nil, explainDenied(err)
	}
	// klog gets flags of its own: a library has registered glog's -v with the
	// process's flags.
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	return c, flags.Set("v", strconv.Itoa(p.verbosity))
}

// serve serves health and metrics while it runs the program.
func (p *process) serve(ctx context.Context, of program, metrics *prometheus.Registry, run func(context.Context) error) error {
	h, err := newHealth(p.httpAddress, of, metrics)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer stop()
	serving.Go(func() { h.serve(ctx) })
	return run(ctx)
}
