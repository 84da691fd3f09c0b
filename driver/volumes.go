package driver

import (
	"context"
	"maps"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/panics"
)

// volumes is the registry of the mounted volumes, by volume id. The zero value is
// empty.
type volumes struct {
	mu   sync.Mutex
	byID map[string]*volume.Volume
	// unread are the target paths of mounted volumes that could not be adopted.
	unread map[string]bool
}

func (r *volumes) get(id string) *volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[id]
}

// put registers the volume, and returns the previous volume with its id.
func (r *volumes) put(v *volume.Volume) (previous *volume.Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = map[string]*volume.Volume{}
	}
	previous = r.byID[v.VolumeID]
	r.byID[v.VolumeID] = v
	delete(r.unread, v.Target)
	return previous
}

// remove removes the volume at the target path, even if it could not be adopted.
func (r *volumes) remove(id, target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.byID[id]; v != nil && v.Target == target {
		delete(r.byID, id)
	}
	delete(r.unread, target)
}

func (r *volumes) putUnread(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unread == nil {
		r.unread = map[string]bool{}
	}
	r.unread[target] = true
}

func (r *volumes) countUnread() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.unread)
}

func (r *volumes) all() []*volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.byID))
}

// manage registers a mounted volume and starts its renewals. The volume replaces a
// registered volume with the same id.
func (d *Driver) manage(ctx context.Context, v *volume.Volume) {
	if previous := d.volumes.put(v); previous != nil {
		previous.Stop()
	}
	v.Keep(ctx)
}

// adoptAll adopts the volumes that an earlier process of this driver left mounted.
func (d *Driver) adoptAll(ctx context.Context) error {
	paths, err := tmpfs.List(ctx, d.config.Name)
	if err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	for _, path := range paths {
		relative, below := d.node.Targets.Relative(path)
		if !below {
			continue // a volume of another kubelet, or a bind mount
		}
		if err := d.adopt(ctx, relative); err != nil {
			logger.Error(err, "Cannot adopt a mounted volume; it is not renewed until the kubelet publishes it again", "path", path)
			d.volumes.putUnread(relative)
		}
	}
	logger.Info("Adopted mounted volumes", "count", len(d.volumes.all()))
	return nil
}

// adopt adopts the volume at the target path. It ignores a bind mount, and the second
// mount of a volume on top of itself.
func (d *Driver) adopt(ctx context.Context, path string) (err error) {
	defer panics.Recover(ctx, "adopt a volume", &err)
	v, err := volume.Adopt(ctx, d.node, path, nil)
	if err != nil || v == nil || d.volumes.get(v.VolumeID) != nil {
		return err
	}
	if err := v.Unmanaged(); err != nil {
		klog.FromContext(ctx).Error(err, "A mounted volume does not fit the configuration; it is not renewed", v.LogValues()...)
	}
	d.manage(ctx, v)
	return nil
}
