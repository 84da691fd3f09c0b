// Package driver is a CSI node plugin (https://github.com/container-storage-interface/spec)
// whose inline ephemeral volumes hold a pod's certificate and private key. The plugin
// renews the certificates for as long as the volumes are mounted.
//
// This package contains the CSI calls, the registry of mounted volumes, and the wiring.
// Package volume owns each volume. Package issuer makes the certificates.
package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/panics"
)

// Config is the configuration of a Driver.
type Config struct {
	// Name is the driver's name, as in a pod's spec.
	Name string
	// Version is the version that the CSI call GetPluginInfo returns.
	Version string
	// NodeName is the name of the node's Node object.
	NodeName string
	// KubeletDir is the kubelet's root directory. Target paths lie below it.
	KubeletDir string
	// SELinux tells whether SELinux is on. SELinuxContext is then the context of volumes
	// for which the kubelet passes none; empty means the kernel's default.
	SELinux        bool
	SELinuxContext string
	// Socket is the path of the CSI socket.
	Socket string
	// Register makes the driver register itself with the kubelet.
	Register bool
	// InPod means that the process runs in a pod: the kubelet has another mount namespace.
	InPod bool
	// ClusterDomain, TrustDomain and AllowShortNames determine the names of pods.
	ClusterDomain   names.ClusterDomain
	TrustDomain     spiffeid.TrustDomain
	AllowShortNames bool
	// MinInterval is the shortest time between two renewals of a volume.
	MinInterval time.Duration
	// VolumesPerPod and VolumesPerNode limit the volumes of a pod and of the node; zero
	// means no limit. They do not apply to volumes that are mounted already.
	VolumesPerPod, VolumesPerNode int
	// Issuers by name. A volume that names no issuer uses the issuer "default".
	Issuers map[string]Issuer
	// Metrics is where the driver registers its metrics, unless it is nil.
	Metrics prometheus.Registerer
	// MetricsPerVolume adds series of each volume, with the names of pods. Otherwise, the
	// metrics are aggregated by namespace and issuer.
	MetricsPerVolume bool
}

// Issuer is an issuer of the node plugin.
type Issuer struct {
	*issuer.Issuer
	// RootsRefresh is how often the driver fetches the roots of the CA.
	RootsRefresh time.Duration
	// Reporter is where the driver reports what is wrong with certificates; nil if the
	// issuer has none.
	Reporter Reporter
}

// Driver serves the CSI Identity and Node services.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	config     Config
	issuers    map[string]*issuerState
	node       *volume.Node
	trust      *trustFile
	volumes    volumes
	leftBehind leftBehind
	locks      locks // by volume id
	quota      quota
	metrics    *metrics
	collector  *collector
	readiness  issuer.Readiness
	registrar  *registrar // nil if somebody else registers the driver

	unshared   atomic.Bool     // mounts do not reach pods
	serving    atomic.Bool     // calls are answered
	background context.Context // of renewals and revocations; ends with Run
	ending     sync.WaitGroup  // goroutines that end with background
}

// New makes a driver. It rejects a configuration that cannot work.
func New(c Config) (*Driver, error) {
	switch {
	case c.Name == "" || c.NodeName == "":
		return nil, errors.New("the names of the driver and the node are missing")
	case len(c.Issuers) == 0:
		return nil, errors.New("no issuer is configured")
	case !filepath.IsAbs(c.KubeletDir) || strings.ContainsFunc(c.KubeletDir, unicode.IsSpace):
		return nil, fmt.Errorf("the kubelet's directory %q is not an absolute path without spaces", c.KubeletDir)
	}
	c.KubeletDir = filepath.Clean(c.KubeletDir)
	d := &Driver{
		config:  c,
		issuers: map[string]*issuerState{},
		metrics: newMetrics(),
		trust:   newTrustFile(c.Socket),
		node: &volume.Node{
			DriverName:  c.Name,
			MinInterval: c.MinInterval,
			Issuers:     map[string]*volume.Issuer{},
			Attributes: attributes.Config{
				ClusterDomain:   c.ClusterDomain,
				TrustDomain:     c.TrustDomain,
				AllowShortNames: c.AllowShortNames,
				Issuers:         map[string]issuer.Lifetimes{},
			},
		},
	}
	d.node.Background = d.inBackground("work for a volume")
	d.node.Revoke = func(ctx context.Context, v *volume.Volume, r issuer.Revocation) { d.revokeLater(ctx, v, &r) }
	for name, i := range c.Issuers {
		state := newIssuerState(name, i, d.metrics)
		d.issuers[name], d.node.Issuers[name], d.node.Attributes.Issuers[name] = state, state.Issuer, i.Lifetimes()
		i.PrepareKeys(d.inBackground("prepare RSA keys"))
		d.readiness.Expect(name)
		d.metrics.expect(name)
	}
	if c.Register {
		d.registrar = newRegistrar(c, registrationSocket(c.KubeletDir, c.Name))
	}
	d.quota = newQuota(c, d.metrics.refused)
	d.collector = newCollector(d)
	if err := d.registerMetrics(c.Metrics); err != nil {
		return nil, err
	}
	return d, nil
}

// inBackground returns a function that runs others in goroutines that end with Run. what
// names their work.
func (d *Driver) inBackground(what string) func(func(context.Context)) {
	return func(f func(context.Context)) {
		d.ending.Go(func() {
			defer panics.Recover(d.background, what, nil)
			f(d.background)
		})
	}
}

// Run serves until ctx ends. Then it finishes the calls in progress and stops its
// goroutines. The mounts stay: pods continue to read, and the next process adopts the
// volumes. The directory of the CSI socket stays, too. Run fails at once on a machine that
// cannot mount volumes, and it fails when somebody removes a socket.
func (d *Driver) Run(ctx context.Context) error {
	if err := tmpfs.Supported(); err != nil {
		return err
	}
	targets, err := tmpfs.OpenDirectory(d.config.KubeletDir)
	if err != nil {
		return fmt.Errorf("open the kubelet's directory (set --kubelet-dir to the kubelet's --root-dir): %w", err)
	}
	defer targets.Close()
	d.node.Targets = targets
	d.quota.limitProcess()
	if d.quota.problem != nil {
		klog.FromContext(ctx).Error(d.quota.problem, "Cannot find the node plugin's memory limit; volumes are not limited by it")
	}

	if err := d.checkPropagation(podsDir); err != nil {
		// Mounted volumes are renewed nevertheless, and the events of new pods say why they wait.
		klog.FromContext(ctx).Error(err, "Volumes cannot reach pods; refusing to publish volumes")
	}

	server, err := d.listen(ctx)
	if err != nil {
		return err
	}
	// Renewals continue after ctx ends, until the calls in progress have ended.
	var stop context.CancelFunc
	d.background, stop = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		stop()
		d.ending.Wait()
	}()
	if err := d.findAll(ctx); err != nil {
		server.close()
		return err
	}
	if d.registrar != nil {
		d.ending.Go(func() { d.registrar.report(d.background) })
	}
	d.ending.Go(func() { d.logExpiring(d.background) })
	d.ending.Go(func() { d.logUnmanaged(d.background) })
	d.ending.Go(func() { d.watchLeftBehind(d.background) })
	d.trust.restore(ctx, d.issuers)
	d.ending.Go(func() { d.trust.keep(d.background, d.issuers) })
	d.ending.Go(func() { d.reportToPods(d.background) })
	for name, i := range d.issuers {
		d.ending.Go(func() { i.Scheduler.Run(d.background) })
		d.ending.Go(func() { d.readiness.Watch(d.background, name, i.Issuer.Issuer, i.rootsRefresh) })
		d.ending.Go(func() { d.followRoots(d.background, i) })
	}
	d.serving.Store(true)
	defer context.AfterFunc(ctx, func() { d.serving.Store(false) })()
	return server.serve(ctx, d.restored)
}

// Ready returns a nil error once the kubelet has registered the driver, and at least one
// issuer has been reached and verified, while volumes can reach pods. It does not wait for
// all issuers: a CA that is down must not stop the rollout of the plugin, which serves the
// volumes of the others. details has a line for each issuer that does not work, or that has
// a warning, and for each other driver name with volumes that no process serves.
func (d *Driver) Ready() (details string, err error) {
	return d.readiness.Details() + d.leftBehind.details(), errors.Join(d.registrar.err(), d.canPublish())
}

// canPublish returns why no volume can be published, for any caller.
func (d *Driver) canPublish() error { return errors.Join(d.propagationErr(), d.readiness.Err()) }
