package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/issuer"
)

const nodeUsage = `Usage: step-csi node [flags]

Serves the CSI node plugin: it mounts a tmpfs with a certificate, its private
key and the CA's roots into every pod that asks for one, and renews them. It
needs root and Linux 5.12 or later.

Flags:

  --config FILE         the configuration                     (/etc/step-csi/step-csi.yaml)
  --node-name NAME      the name of the Node                  ($NODE_NAME, else the host's name)
  --kubelet-dir DIR     the kubelet's --root-dir              (/var/lib/kubelet)
  --csi-socket PATH     where to serve CSI                    (DIR/plugins/<driver name>/csi.sock)
  --http-address ADDR   serve /livez, /readyz and /metrics, such as :9808 (off)
  --kubelet-register    register with the kubelet by itself   (true)
  --v N                 log more: 4 logs every call           (0)

The configuration, with its defaults where there are any:

  driverName: csi.step-ca.io
  clusterDomain: cluster.local
  trustDomain: cluster.local           # of the pods' SPIFFE IDs; clusterDomain if left out
  issuers:
    default:                           # the one that volumes get without "issuer"
      url: https://step-certificates.step-ca.svc.cluster.local
      fingerprint: 84a0…               # step certificate fingerprint root_ca.crt; or several: a, b
      # caBundleFile: /etc/step-csi/root_ca.crt        instead of the fingerprint
      provisioner: {type: jwk, name: admin, passwordFile: /etc/step-csi/password}
      # provisioner: {type: ra, tokenFile: /etc/step-csi/token}   the url is then that of "step-csi ra"
      duration: {default: 24h, max: 24h, min: 5m}
      roots: {refresh: 5m, federation: false}   # how often to ask for the CA's roots; with those it is federated with
  policy:
    allowShortNames: false             # also the bare "s" of service-names: s
    validations: []                    # CEL; replaces the default policy where given, and an
                                       # issuer's own policy.validations replace these
`

// options are the flags of the node command.
type options struct {
	config, nodeName, kubeletDir, socket, httpAddress string

	register  bool
	verbosity int
}

func node(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stdout, stderr)
	if err != nil {
		return err
	}
	if err := harden(nodeCapabilities()...); err != nil {
		return err
	}
	settings, err := loadConfig(o.config, (*configFile).node)
	if err != nil {
		return explainDenied(err)
	}
	defer settings.close()
	if err := setUpLogs(o.verbosity); err != nil {
		return err
	}
	registry := newRegistry()
	checked, err := settings.driverConfig(o, registry)
	if err != nil {
		return err
	}
	d, err := driver.New(checked)
	if err != nil {
		return err
	}
	h, err := newHealth(o.httpAddress, d.Ready, registry)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("step-csi", "version", version(), "driver", settings.driverName, "node", o.nodeName)
	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() { h.serve(ctx) })
	err = d.Run(ctx)
	stop()
	serving.Wait()
	klog.FromContext(ctx).Info("Stopped; mounted volumes stay as they are")
	klog.Flush()
	return err
}

func parseOptions(args []string, stdout, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("node", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.config, "config", "/etc/step-csi/step-csi.yaml", "")
	flags.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"), "")
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "")
	flags.StringVar(&o.socket, "csi-socket", "", "")
	flags.StringVar(&o.httpAddress, "http-address", "", "")
	flags.BoolVar(&o.register, "kubelet-register", true, "")
	flags.IntVar(&o.verbosity, "v", 0, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, nodeUsage)
		return o, err
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "step-csi node: %v\n\n%s", err, nodeUsage)
		return o, errUsage
	}
	if o.nodeName == "" {
		if o.nodeName, err = os.Hostname(); err != nil {
			return o, fmt.Errorf("no --node-name, and no host name: %w", err)
		}
	}
	if o.kubeletDir, err = filepath.Abs(o.kubeletDir); err != nil {
		return o, fmt.Errorf("--kubelet-dir: %w", err)
	}
	return o, nil
}

// node checks that the file is a node plugin's.
func (f *configFile) node(directory string) (*config, error) {
	if f.Authority != nil {
		return nil, errors.New("authority: is for step-csi ra; a node plugin has none")
	}
	return f.check(directory)
}

func (c *config) driverConfig(o options, metrics prometheus.Registerer) (driver.Config, error) {
	d := driver.Config{
		Name:            c.driverName,
		Version:         version(),
		NodeName:        o.nodeName,
		KubeletDir:      o.kubeletDir,
		Socket:          or(o.socket, filepath.Join(o.kubeletDir, "plugins", c.driverName, "csi.sock")),
		Register:        o.register,
		ClusterDomain:   c.clusterDomain,
		TrustDomain:     c.trustDomain,
		AllowShortNames: c.allowShortNames,
		Issuers:         map[string]driver.Issuer{},
		Metrics:         metrics,
	}
	keys := issuer.NewKeyGenerator()
	for name, i := range c.issuers {
		made, err := issuer.New(issuer.Config{Signer: i.signer, Policy: i.allow, Keys: keys})
		if err != nil {
			return driver.Config{}, err
		}
		d.Issuers[name] = driver.Issuer{Issuer: made, Bounds: i.bounds, RootsRefresh: i.rootsRefresh}
	}
	return d, nil
}

// setUpLogs gives klog flags of its own: a library has registered -v of glog on
// the process's.
func setUpLogs(verbosity int) error {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	return flags.Set("v", strconv.Itoa(verbosity))
}
