package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra/server"
)

const raUsage = `Usage: step-csi ra [flags]

Runs the registration authority. It holds the password or key of the CA's provisioner,
so that no node has to, and has the CA sign for node plugins whose issuers have the
provisioner type ra. The API server reviews every token that it receives. It keeps
no state: run two or more replicas.

The configuration has the keys of the node plugin's ("step-csi node --help"), without
renewal and limits. The provisioner type of its issuers is jwk or x5c, and its policy
applies to all nodes. It also has these keys:

  authority:
    names: [step-csi-ra.step-ca.svc.cluster.local]   # DNS names of its own certificate
    issuer: default                  # issuer that signs its own certificate
    plugin: step-ca/step-csi         # service account of the node plugins, the only callers
    limits:                          # requests per second and bursts, per replica
      node: {rate: 50, burst: 500}
      pod: {rate: 1, burst: 20}
    events: true                     # tell running pods by events why they are not renewed
    # kubernetes: {url: https://…, caFile: …, tokenFile: …}   only outside of a cluster

Its service account needs the right to create tokenreviews.authentication.k8s.io, and
with events the right to create events of the core API group. It needs no other.

Connections go through the proxy of HTTPS_PROXY, except to hosts in NO_PROXY.
`

func serveRA(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var p process
	flags := flag.NewFlagSet("ra", flag.ContinueOnError)
	p.addFlags(flags)
	address := flags.String("listen", ":8443", "serve gRPC over TLS 1.3 at `ADDR`")
	if err := parseFlags(flags, 0, raUsage, args, stdout, stderr); err != nil {
		return err
	}
	c, err := p.start((*configFile).ra) // needs no capability
	if p.checkConfig {
		if err == nil {
			if err = c.checkServer(); err != nil {
				err = explainDenied(fmt.Errorf("%s: %w", p.config, err))
			}
		}
		return p.reportCheck(c, err, stdout)
	}
	if err != nil {
		return err
	}
	defer c.close()
	registry := newRegistry()
	c.registerURLs(registry)
	s, err := c.newServer(registry)
	if err != nil {
		return explainDenied(fmt.Errorf("%s: %w", p.config, err))
	}
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", *address, err)
	}
	klog.FromContext(ctx).Info("Starting the registration authority", "version", version())
	c.warnUnrestricted(ctx)
	err = p.serve(ctx, s, registry, func(ctx context.Context) error { return s.Run(ctx, listener) })
	klog.FromContext(ctx).Info("Stopped")
	return err
}

func (c *config) newServer(metrics prometheus.Registerer) (*server.Server, error) {
	api, err := c.authority.Kubernetes.apiServer()
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
	if c.authority.Events == nil || *c.authority.Events {
		if checked.Events, err = server.NewEvents(api); err != nil {
			return nil, err
		}
	}
	checked.TokenIssuer = server.IssuerOf(ownToken(api))
	s, err := server.New(checked)
	if err != nil {
		return nil, fmt.Errorf("authority.%w", err)
	}
	return s, nil
}

// serverConfig returns the configuration of package server.
func (c *config) serverConfig(reviewer server.Reviewer, metrics prometheus.Registerer) (server.Config, error) {
	namespace, name, ok := strings.Cut(c.authority.Plugin, "/")
	if !ok || namespace == "" || name == "" {
		return server.Config{}, fmt.Errorf("authority.plugin: %q is not a service account in the form namespace/name; set that of the node plugins", c.authority.Plugin)
	}
	serving := c.issuers[c.authority.Issuer]
	s := server.Config{
		Issuers: map[string]server.Issuer{},
		Serving: server.Serving{
			Issuer: c.authority.Issuer, Signer: serving.signer, Names: c.authorityNames,
			// What is configured for pods is only a maximum here: a CA that refuses it
			// must not keep the registration authority from starting.
			Lifetimes: issuer.Lifetimes{Max: cmp.Or(serving.lifetimes.Default, serving.lifetimes.Max)},
		},
		Plugin:   server.ServiceAccount{Namespace: namespace, Name: name},
		Reviewer: reviewer,
		Limits:   server.Limits{Node: server.Limit(c.authority.Limits.Node), Pod: server.Limit(c.authority.Limits.Pod)},
		Metrics:  metrics,
	}
	for name, i := range c.issuers {
		s.Issuers[name] = server.Issuer{Issuer: i.issuer, RootsRefresh: i.rootsRefresh}
	}
	return s, nil
}

// ownToken returns the token by which the process calls the API server. If it cannot be
// read, the first review says so.
func ownToken(c *rest.Config) string {
	if c.BearerTokenFile == "" {
		return c.BearerToken
	}
	token, _ := os.ReadFile(c.BearerTokenFile)
	return string(token)
}

// apiServer returns the configuration of the client for the API server.
func (f kubernetesFile) apiServer() (*rest.Config, error) {
	if f == (kubernetesFile{}) {
		c, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server: %w; outside of a cluster, set authority.kubernetes.url, caFile and tokenFile", err)
		}
		return c, nil
	}
	if !strings.HasPrefix(f.URL, "https://") || f.CAFile == "" || f.TokenFile == "" {
		return nil, errors.New("authority.kubernetes: set url (https), caFile and tokenFile")
	}
	return &rest.Config{Host: f.URL, BearerTokenFile: f.TokenFile, TLSClientConfig: rest.TLSClientConfig{CAFile: f.CAFile}}, nil
}
