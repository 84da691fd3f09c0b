// Package driver is a CSI node plugin (https://github.com/container-storage-interface/spec)
// whose inline ephemeral volumes hold a pod's certificate and private key, and
// which renews them for as long as they are mounted.
//
// It has the CSI calls, the registry of the volumes that are mounted, and the wiring.
// Package volume owns each volume, package issuer makes the certificates.
package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
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
	// ClusterDomain, TrustDomain and AllowShortNames make the names of pods.
	ClusterDomain   names.ClusterDomain
	TrustDomain     spiffeid.TrustDomain
	AllowShortNames bool
	// Issuers by name. A volume that names none has the one called default.
	Issuers map[string]Issuer
	// Metrics are registered here, unless it is nil.
	Metrics prometheus.Registerer
}

// Issuer is an issuer with the bounds of what it is asked for.
type Issuer struct {
	*issuer.Issuer
	Bounds attributes.Bounds
	// RootsRefresh is how often the issuer is asked for the roots of its CA.
	RootsRefresh time.Duration
}

// Driver serves the CSI Identity and Node services.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	config    Config
	issuers   map[string]*issuerState
	node      *volume.Node
	volumes   volumes
	locks     locks // by volume id
	metrics   *metrics
	collector *collector
	readiness issuer.Readiness

	background context.Context // of renewals and revocations; ends with Run
	ending     sync.WaitGroup  // what ends with it
}

// New refuses a configuration that cannot work.
func New(c Config) (*Driver, error) {
	switch {
	case c.Name == "" || c.NodeName == "":
		return nil, errors.New("the driver and the node need names")
	case len(c.Issuers) == 0:
		return nil, errors.New("there is no issuer")
	case !filepath.IsAbs(c.KubeletDir) || strings.ContainsFunc(c.KubeletDir, unicode.IsSpace):
		return nil, fmt.Errorf("the kubelet's directory %q is not an absolute path without blanks", c.KubeletDir)
	}
	c.KubeletDir = filepath.Clean(c.KubeletDir)
	d := &Driver{
		config:  c,
		issuers: map[string]*issuerState{},
		metrics: newMetrics(),
		node: &volume.Node{
			DriverName: c.Name,
			Issuers:    map[string]*volume.Issuer{},
			Attributes: attributes.Config{
				ClusterDomain:   c.ClusterDomain,
				TrustDomain:     c.TrustDomain,
				AllowShortNames: c.AllowShortNames,
				Issuers:         map[string]attributes.Bounds{},
			},
		},
	}
	for name, i := range c.Issuers {
		state := newIssuerState(name, i, d.metrics)
		d.issuers[name], d.node.Issuers[name], d.node.Attributes.Issuers[name] = state, state.Issuer, i.Bounds
		d.readiness.Expect(name)
		d.metrics.expect(name)
	}
	d.collector = newCollector(d)
	if err := d.registerMetrics(c.Metrics); err != nil {
		return nil, err
	}
	return d, nil
}

// Run serves until ctx ends. Then it finishes the calls under way, ends everything
// that it started, and leaves the mounts alone: pods go on reading, and the next
// process adopts the volumes. It refuses a machine on which volumes cannot be made.
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

	server, err := d.listen(ctx)
	if err != nil {
		return err
	}
	// Renewals outlive ctx until the calls under way have ended.
	var stop context.CancelFunc
	d.background, stop = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		stop()
		d.ending.Wait()
	}()
	if err := d.adoptAll(ctx); err != nil {
		server.close()
		return err
	}
	for name, i := range d.issuers {
		d.ending.Go(func() { i.Scheduler.Run(d.background) })
		d.ending.Go(func() {
			d.readiness.Connect(d.background, name, i.Issuer.Issuer)
			d.followRoots(d.background, i)
		})
	}
	err = server.serve(ctx)
	d.removeDirectory()
	return err
}

// Ready is nil once every issuer has answered, and was trusted, once. Otherwise it
// names those that have not.
func (d *Driver) Ready() error { return d.readiness.Err() }
