package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/ra/server"
)

const raUsage = `Usage: step-csi ra [flags]

Serves the registration authority: it holds the password of the CA's provisioner,
so that no node has to, and signs for node plugins whose issuers have the
provisioner type ra. It asks the API server about every token that it is shown,
and keeps no state: run two or more of it.

Flags:

  --config FILE         the configuration                     (/etc/step-csi/step-csi.yaml)
  --listen ADDR         where to serve, gRPC over TLS 1.3     (:8443)
  --http-address ADDR   serve /livez, /readyz and /metrics, such as :9808 (off)
  --v N                 log more                              (0)

The configuration is that of the node plugin ("step-csi node --help"): its issuers
are of the type jwk, and its policy decides. Beside that it has

  authority:
    names: [step-csi-ra.step-ca.svc.cluster.local]   # of its own certificate; node plugins call the first
    issuer: default                  # whose CA signs that
    plugin: step-ca/step-csi         # the service account of the node plugins: nobody else may ask
    limits:                          # requests per second, and at once, for each replica
      node: {rate: 50, burst: 500}
      pod: {rate: 1, burst: 20}
    # kubernetes: {url: https://…, caFile: …, tokenFile: …}   outside of a cluster

Its service account needs the right to create tokenreviews.authentication.k8s.io,
and no other.
`

// raOptions are the flags of the ra command.
type raOptions struct {
	config, listen, httpAddress string

	verbosity int
}

func serveRA(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseRAOptions(args, stdout, stderr)
	if err != nil {
		return err
	}
	// No capability is needed, and no file of others.
	if err := harden(); err != nil {
		return err
	}
	settings, err := loadConfig(o.config, (*configFile).ra)
	if err != nil {
		return explainDenied(err)
	}
	defer settings.close()
	if err := setUpLogs(o.verbosity); err != nil {
		return err
	}
	defer klog.Flush()
	registry := newRegistry()
	a, err := settings.newServer(registry)
	if err != nil {
		return explainDenied(fmt.Errorf("%s: %w", o.config, err))
	}
	h, err := newHealth(o.httpAddress, a.Ready, registry)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", o.listen, err)
	}
	klog.FromContext(ctx).Info("step-csi ra", "version", version())
	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() { h.serve(ctx) })
	err = a.Run(ctx, listener)
	stop()
	serving.Wait()
	klog.FromContext(ctx).Info("Stopped")
	return err
}

func (c *raConfig) newServer(metrics prometheus.Registerer) (*server.Server, error) {
	api, err := c.file.Kubernetes.apiServer()
	if err != nil {
		return nil, err
	}
	reviewer, err := server.NewTokenReview(api)
	if err != nil {
		return nil, err
	}
	checked, err := c.serverConfig(reviewer, metrics)
	if err != nil {
		return nil, err
	}
	a, err := server.New(checked)
	if err != nil {
		return nil, fmt.Errorf("authority.%w", err)
	}
	return a, nil
}

func parseRAOptions(args []string, stdout, stderr io.Writer) (raOptions, error) {
	var o raOptions
	flags := flag.NewFlagSet("ra", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.config, "config", "/etc/step-csi/step-csi.yaml", "")
	flags.StringVar(&o.listen, "listen", ":8443", "")
	flags.StringVar(&o.httpAddress, "http-address", "", "")
	flags.IntVar(&o.verbosity, "v", 0, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, raUsage)
		return o, err
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "step-csi ra: %v\n\n%s", err, raUsage)
		return o, errUsage
	}
	return o, nil
}
