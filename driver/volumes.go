package driver

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/panics"
)

// volumes is the registry of the mounted volumes. The zero value is empty.
type volumes struct {
	mu sync.Mutex
	// byID are the volumes that the kubelet has published to this process, by volume id.
	byID map[string]*volume.Volume
	// found are the volumes of an earlier process, by target path, until the kubelet
	// publishes them. Only their record says whose they are: see volume.Find.
	found map[string]*volume.Volume
	// unread are the target paths of mounted volumes that could not be adopted.
	unread map[string]bool
}

func (r *volumes) get(id string) *volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[id]
}

// at returns the volume at the target path, or nil.
func (r *volumes) at(target string) *volume.Volume {
	for _, v := range r.all() {
		if v.Target == target {
			return v
		}
	}
	return nil
}

// put registers the volume, and returns the volume that it replaces: the one with its id,
// or the one that was found at its target path.
func (r *volumes) put(v *volume.Volume) (previous *volume.Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = map[string]*volume.Volume{}
	}
	previous = cmp.Or(r.byID[v.VolumeID], r.found[v.Target])
	r.byID[v.VolumeID] = v
	delete(r.found, v.Target)
	delete(r.unread, v.Target)
	return previous
}

// putFound registers a volume of an earlier process.
func (r *volumes) putFound(v *volume.Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.found == nil {
		r.found = map[string]*volume.Volume{}
	}
	r.found[v.Target] = v
}

// allFound returns the volumes of an earlier process that the kubelet has not published.
func (r *volumes) allFound() []*volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.found))
}

// remove removes the volume at the target path, even if it could not be adopted.
func (r *volumes) remove(id, target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.byID[id]; v != nil && v.Target == target {
		delete(r.byID, id)
	}
	delete(r.found, target)
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
	return slices.AppendSeq(slices.Collect(maps.Values(r.byID)), maps.Values(r.found))
}

// manage registers a mounted volume and starts its renewals. The volume replaces a
// registered volume with the same id.
func (d *Driver) manage(ctx context.Context, v *volume.Volume) {
	if previous := d.volumes.put(v); previous != nil {
		previous.Stop()
	}
	v.Keep(ctx)
}

// findAll finds the volumes that an earlier process of this driver left mounted. The driver
// adopts each of them when the kubelet publishes it again.
func (d *Driver) findAll(ctx context.Context) error {
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
		if err := d.find(ctx, relative); err != nil {
			logger.Error(err, "Cannot adopt a mounted volume; it is not renewed until the kubelet publishes it again", "path", path)
			d.volumes.putUnread(relative)
		}
	}
	logger.Info("Found mounted volumes", "count", len(d.volumes.all()))
	return nil
}

// find finds the volume at the target path. It ignores a bind mount, and the second mount
// of a volume on top of itself.
func (d *Driver) find(ctx context.Context, path string) (err error) {
	defer panics.Recover(ctx, "find a volume", &err)
	v, err := volume.Find(d.node, path)
	switch {
	case errors.Is(err, volume.ErrElsewhere) && nameInPod(path) == "":
		return nil
	case err != nil:
		return err
	case d.volumes.at(path) != nil:
		return nil
	}
	if err := v.Unmanaged(); err != nil {
		klog.FromContext(ctx).Error(err, "A mounted volume does not fit the configuration; it is not renewed", v.LogValues()...)
	}
	d.volumes.putFound(v)
	v.Keep(ctx)
	return nil
}

// reportUnconfirmed logs the volumes of an earlier process that the kubelet has not
// published within volume.ConfirmationLimit.
func (d *Driver) reportUnconfirmed(ctx context.Context) {
	select {
	case <-time.After(volume.ConfirmationLimit):
	case <-ctx.Done():
		return
	}
	for _, v := range d.volumes.allFound() {
		if err := v.Unmanaged(); errors.Is(err, volume.ErrUnconfirmed) {
			klog.FromContext(ctx).Error(err, "A mounted volume is not renewed", append(v.LogValues(), "target", v.Target)...)
		}
	}
}
