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

Runs the registration authority. It holds the password of the CA's provisioner, so
that no node has to, and has the CA sign for node plugins whose issuers have the
provisioner type ra. The API server reviews every token that it receives. It keeps
no state: run two or more replicas.

Flags:

  --config FILE         configuration file                    (/etc/step-csi/step-csi.yaml)
  --listen ADDR         address to serve gRPC over TLS 1.3    (:8443)
  --http-address ADDR   serve /livez, /readyz and /metrics, such as at :9808 (off)
  --v N                 log verbosity                         (0)

The configuration has the keys of the node plugin's ("step-csi node --help"). The
provisioner type of its issuers is jwk, and its policy applies to all nodes. It also
has these keys:

  authority:
    names: [step-csi-ra.step-ca.svc.cluster.local]   # DNS names of its own certificate
    issuer: default                  # issuer that signs its own certificate
    plugin: step-ca/step-csi         # service account of the node plugins, the only callers
    limits:                          # requests per second and bursts, per replica
      node: {rate: 50, burst: 500}
      pod: {rate: 1, burst: 20}
    # kubernetes: {url: https://…, caFile: …, tokenFile: …}   only outside of a cluster

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
	// It needs no capability.
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
	s, err := settings.newServer(registry)
	if err != nil {
		return explainDenied(fmt.Errorf("%s: %w", o.config, err))
	}
	h, err := newHealth(o.httpAddress, s.Ready, registry)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", o.listen, err)
	}
	klog.FromContext(ctx).Info("Starting the registration authority", "version", version())
	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() { h.serve(ctx) })
	err = s.Run(ctx, listener)
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
	s, err := server.New(checked)
	if err != nil {
		return nil, fmt.Errorf("authority.%w", err)
	}
	return s, nil
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
