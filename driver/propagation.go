package driver

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// podsDir is the directory of all target paths, relative to the kubelet's.
const podsDir = "pods"

// errUnshared means that pods would find an empty directory instead of their volume.
var errUnshared = errors.New("volumes cannot reach pods")

// checkPropagation returns an error if a mount in the directory, relative to the kubelet's,
// would not reach the kubelet, and so no pod. It records the result for Ready. In a pod, the
// plugin has its own mount namespace, and its mount of the kubelet's directory must be
// shared with the node's. Outside of a pod, the plugin and the kubelet can have the same
// mount namespace. Then only a slave is an error: its master is in another one.
func (d *Driver) checkPropagation(directory string) error {
	opened, err := d.node.Targets.Open(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing can be mounted there
	}
	if err != nil {
		return err
	}
	defer opened.Close()
	m, err := tmpfs.MountOf(opened)
	if err != nil {
		return err
	}
	unshared := !m.Shared && (m.Slave || d.config.InPod && m.Point != "")
	d.unshared.Store(unshared)
	switch {
	case !unshared:
		return nil
	case d.config.InPod:
		return fmt.Errorf("%w: in the node plugin's pod, the mount %s is not shared with the node %s, so that pods would find an empty directory: "+
			`run "mount --make-rshared /" on this node, also at each boot, and delete the node plugin's pod there. `+
			"Without the chart, also check that the volumeMount has mountPropagation: Bidirectional",
			errUnshared, m.Point, d.config.NodeName)
	default:
		return fmt.Errorf("%w: the mount %s of the node plugin is a slave of the node's, so that pods would find an empty directory: "+
			"run the node plugin in the mount namespace of the kubelet (a unit of systemd without PrivateMounts, PrivateTmp, ProtectSystem and the like)",
			errUnshared, m.Point)
	}
}

// propagationErr returns the error of checkPropagation while pods cannot get volumes. It
// reads the mount table only if that was so before.
func (d *Driver) propagationErr() error {
	if !d.unshared.Load() {
		return nil
	}
	return d.checkPropagation(podsDir)
}
