package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/driver/tmpfs"
)

const nodeUsage = `Usage: step-csi node [flags]

Runs the CSI node plugin: it mounts a tmpfs with a certificate, its private key and
the CA's roots into every pod that requests one, and renews the certificates. It needs
root and Linux 5.12 or later.

The configuration, with its defaults where there are any:

  driverName: csi.step-ca.io
  clusterDomain: cluster.local
  trustDomain: cluster.local           # of SPIFFE IDs; default: clusterDomain
  issuers:
    default:                           # for volumes without the attribute "issuer"
      url: https://step-certificates.step-ca.svc.cluster.local
      # urls: [https://ca-0.example.com, https://ca-1.example.com]   of one CA, instead of the url
      # serverTLS: system                              behind an ingress with a public certificate; or
      # serverTLS: bundle                              with serverTLSBundleFile: /etc/step-csi/ingress.crt
      fingerprint: 84a0…               # step certificate fingerprint root_ca.crt; or several: a, b
      # caBundleFile: /etc/step-csi/root_ca.crt        instead of the fingerprint
      provisioner:
        {type: jwk, name: admin, passwordFile: /etc/step-csi/password, requireDisableRenewal: false}
        # {type: jwk, name: admin, keyFile: /etc/step-csi/key}    a key that the CA does not keep; kid if several share the name
        # {type: x5c, name: x5c, certificateFile: /etc/step-csi/tls.crt, privateKeyFile: /etc/step-csi/tls.key}
      # provisioner: {type: ra, tokenFile: /etc/step-csi/token}   with the URL of "step-csi ra" as the url
      # duration: {default: 8h, max: 24h, min: 5m}     by default, those of the CA's provisioner
      # how often to fetch the CA's roots; add federated roots; never use a root that is not configured here
      roots: {refresh: 5m, federation: false, pinned: false}
      # more roots for the pods' ca.crt, which never verify the CA: those of a file, which is read
      # again at the interval roots.refresh; and those that Mozilla trusts
      # additionalRootsFile: /etc/step-csi/additional.crt
      # publicRoots: false
  policy:
    allowShortNames: false             # service-names: s also gives the short name s
    allowSubjectFields: []             # such as [organizations]: the validations decide about
                                       # these subject fields; all others are denied
    allowTemplateData: false           # the same for the attribute template-data
    validations: []                    # CEL; replaces the default policy. An issuer's own policy
                                       # replaces all of these but allowShortNames
  renewal:
    minInterval: 1m                    # shortest time between two renewals of a volume, but at most half a lifetime
  limits:
    volumesPerPod: 32
    volumesPerNode: 0                  # 0: as many as fit into the memory limit of the node plugin
  metrics:
    perVolume: false                   # metrics of each volume, which name the pods that have certificates

Connections go through the proxy of HTTPS_PROXY, except to hosts in NO_PROXY.
`

// nodeOptions are the flags of the node command.
type nodeOptions struct {
	process
	nodeName, kubeletDir, socket string
	register                     bool
	seLinuxContext               string
}

func node(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseNodeOptions(args, stdout, stderr)
	if err != nil {
		return err
	}
	// CAP_DAC_OVERRIDE is not needed, because root owns the directories of targets and sockets.
	c, err := o.start((*configFile).node,
		cap.SYS_ADMIN, // to mount and unmount, and for the extended attribute trusted.step-csi
		cap.CHOWN,     // to give files to the attribute owner-uid and to the pod's fsGroup
		// For files that owner-uid gives to a user of the pod, who alone may read them:
		cap.DAC_READ_SEARCH, // to read them, after a restart and when the roots change
		cap.FOWNER)          // to change their mode, and the times by which watchers see a renewal
	if o.checkConfig {
		return o.reportCheck(c, err, stdout)
	}
	if err != nil {
		return err
	}
	defer c.close()
	registry := newRegistry()
	c.registerURLs(registry)
	configured := c.driverConfig(o, registry)
	if configured.SELinux, err = tmpfs.SELinux(os.DirFS("/proc")); err != nil {
		return fmt.Errorf("find out whether SELinux is on: %w", err)
	}
	d, err := driver.New(configured)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("step-csi", "version", version(), "driver", c.driverName, "node", o.nodeName, "selinux", configured.SELinux)
	c.warnPublicRoots(ctx)
	c.warnUnrestricted(ctx)
	err = o.serve(ctx, d, registry, d.Run)
	klog.FromContext(ctx).Info("Stopped; mounted volumes stay as they are")
	return err
}

func parseNodeOptions(args []string, stdout, stderr io.Writer) (nodeOptions, error) {
	var o nodeOptions
	flags := flag.NewFlagSet("node", flag.ContinueOnError)
	o.addFlags(flags)
	flags.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"), "`NAME` of the Node; by default $NODE_NAME, else the host name")
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "the kubelet's --root-dir, `DIR`")
	flags.StringVar(&o.socket, "csi-socket", "", "serve CSI at `PATH`; by default DIR/plugins/<driver name>/csi.sock")
	flags.BoolVar(&o.register, "kubelet-register", true, "register with the kubelet, without a sidecar")
	flags.StringVar(&o.seLinuxContext, "selinux-context", "",
		"where SELinux is on, mount volumes with this `CONTEXT` if the kubelet passes none, such as system_u:object_r:container_file_t:s0")
	err := parseFlags(flags, 0, nodeUsage, args, stdout, stderr)
	if err != nil {
		return o, err
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

func (c *config) driverConfig(o nodeOptions, metrics prometheus.Registerer) driver.Config {
	d := driver.Config{
		Name:            c.driverName,
		Version:         version(),
		NodeName:        o.nodeName,
		KubeletDir:      o.kubeletDir,
		SELinuxContext:  o.seLinuxContext,
		Socket:          cmp.Or(o.socket, filepath.Join(o.kubeletDir, "plugins", c.driverName, "csi.sock")),
		Register:        o.register,
		InPod:           kubernetesHost() != "",
		ClusterDomain:   c.clusterDomain,
		TrustDomain:     c.trustDomain,
		AllowShortNames: c.allowShortNames,
		MinInterval:     c.minInterval,
		VolumesPerPod:   c.volumesPerPod,
		VolumesPerNode:  c.volumesPerNode,
		Issuers:         map[string]driver.Issuer{},
		Metrics:         metrics,

		MetricsPerVolume: c.metricsPerVolume,
	}
	for name, i := range c.issuers {
		reporter, _ := i.signer.(driver.Reporter)
		d.Issuers[name] = driver.Issuer{Issuer: i.issuer, RootsRefresh: i.rootsRefresh, Reporter: reporter}
	}
	return d
}
