// Package driver is a CSI node plugin (https://github.com/container-storage-interface/spec)
// whose inline ephemeral volumes hold a pod's certificate and private key, and
// which renews them for as long as they are mounted.
//
// It keeps no state of its own: what there is to know about a volume is in its
// mount. How certificates are made is package issuer's business.
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

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/schedule"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// Config is what a Driver needs.
type Config struct {
	// Name is the driver's name, as in a pod's spec.
	Name string
	// Version is what the CSI call GetPluginInfo answers.
	Version string
	// NodeName is the name of the node's Node object.
	NodeName string
	// KubeletDir is the kubelet's root directory. Target paths lie below it.
	KubeletDir string
	// Socket is the path of the CSI socket.
	Socket string
	// Register makes the driver register itself with the kubelet.
	Register bool
	// ClusterDomain, TrustDomain and AllowShortNames are what names are made
	// with.
	ClusterDomain   names.ClusterDomain
	TrustDomain     spiffeid.TrustDomain
	AllowShortNames bool
	// Issuers by name. A volume that names none takes the one called default.
	Issuers map[string]Issuer
	// Metrics are registered here; nowhere if it is nil.
	Metrics prometheus.Registerer
}

// Issuer is an issuer with the bounds of what it is asked for.
type Issuer struct {
	*issuer.Issuer
	Bounds attributes.Bounds
	// RootsRefresh is how often the authority is asked for its roots.
	RootsRefresh time.Duration
}

// Driver serves the CSI Identity and Node services.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	config      Config
	attributes  attributes.Config
	authorities map[string]authority
	targets     *tmpfs.Directory
	metrics     *metrics

	background context.Context // of renewals; ends with Run
	readiness  issuer.Readiness
	ending     sync.WaitGroup // connecting, and revoking
	locks      locks

	mu      sync.Mutex
	volumes map[string]*volume // mounted, by volume id
}

type authority struct {
	issuer       *issuer.Issuer
	line         *schedule.Line
	rootsRefresh time.Duration
	// revoking has a place for each revocation at a time.
	revoking chan struct{}
	// cannotRevoke says that it has been told already.
	cannotRevoke *atomic.Bool
}

// New refuses a configuration that cannot work, and a machine on which volumes
// cannot be made.
func New(c Config) (*Driver, error) {
	switch {
	case c.Name == "" || c.NodeName == "":
		return nil, errors.New("the driver and the node need names")
	case len(c.Issuers) == 0:
		return nil, errors.New("there is no issuer")
	case !filepath.IsAbs(c.KubeletDir) || strings.ContainsFunc(c.KubeletDir, unicode.IsSpace):
		return nil, fmt.Errorf("the kubelet's directory %q is not an absolute path without blanks", c.KubeletDir)
	}
	d := &Driver{
		config:      c,
		authorities: map[string]authority{},
		volumes:     map[string]*volume{},
		metrics:     newMetrics(),
		attributes: attributes.Config{
			ClusterDomain:   c.ClusterDomain,
			TrustDomain:     c.TrustDomain,
			AllowShortNames: c.AllowShortNames,
			Issuers:         map[string]attributes.Bounds{},
		},
	}
	for name, i := range c.Issuers {
		d.authorities[name] = authority{
			issuer: i.Issuer, line: schedule.NewLine(), rootsRefresh: i.RootsRefresh,
			revoking: make(chan struct{}, revocationsAtOnce), cannotRevoke: &atomic.Bool{},
		}
		d.attributes.Issuers[name] = i.Bounds
		d.readiness.Expect(name)
		d.metrics.expect(name)
	}
	d.config.KubeletDir = filepath.Clean(c.KubeletDir)
	if err := d.registerMetrics(c.Metrics); err != nil {
		return nil, err
	}
	return d, nil
}

// Run serves until the context ends. Then it finishes the calls in flight, ends
// all that it has started, and leaves the mounts alone: pods go on reading, and
// the next process takes the volumes over.
func (d *Driver) Run(ctx context.Context) error {
	if err := tmpfs.Supported(); err != nil {
		return err
	}
	targets, err := tmpfs.OpenDirectory(d.config.KubeletDir)
	if err != nil {
		return fmt.Errorf("open the kubelet's directory (set --kubelet-dir to the kubelet's --root-dir): %w", err)
	}
	defer targets.Close()
	d.targets = targets

	server, err := d.listen(ctx)
	if err != nil {
		return err
	}
	// Renewals and connecting outlive ctx until the calls in flight have ended.
	var stop context.CancelFunc
	d.background, stop = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		stop()
		d.ending.Wait()
	}()
	if err := d.restore(ctx); err != nil {
		server.close()
		return err
	}
	for name, a := range d.authorities {
		d.ending.Go(func() { a.line.Run(d.background) })
		d.ending.Go(func() {
			d.readiness.Connect(d.background, name, a.issuer)
			d.followRoots(d.background, name, a)
		})
	}
	err = server.serve(ctx)
	d.removeDirectory()
	return err
}

// Ready is nil once every issuer has answered, and was trusted, once; else it
// names those that have not.
func (d *Driver) Ready() error { return d.readiness.Err() }
