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
	// publishing has the UIDs of the pods whose volumes are being published, by volume id.
	publishing map[string]string
	// inherited is the memory of the volumes that earlier processes mounted, by volume id.
	inherited map[string]int64
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
	delete(r.publishing, v.VolumeID)
	return previous
}

// reserve counts the volumes, and reserves a place for another one of the pod if check
// allows it. Either put or release ends the reservation.
func (r *volumes) reserve(id, uid string, check func(volumeCount) (limit string, err error)) (limit string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := volumeCount{mounted: len(r.byID) + len(r.unread), publishing: len(r.publishing)}
	for _, v := range r.byID {
		if v.Pod.UID == uid {
			n.ofPod++
		}
	}
	for _, bytes := range r.inherited {
		n.inherited += bytes
	}
	for _, other := range r.publishing {
		if other == uid {
			n.ofPod++
		}
	}
	if limit, err = check(n); err != nil {
		return limit, err
	}
	if r.publishing == nil {
		r.publishing = map[string]string{}
	}
	r.publishing[id] = uid
	return "", nil
}

// inherit records the memory of a volume that an earlier process mounted.
func (r *volumes) inherit(id string, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inherited == nil {
		r.inherited = map[string]int64{}
	}
	r.inherited[id] = bytes
}

func (r *volumes) release(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.publishing, id)
}

// remove removes the volume at the target path, even if it could not be adopted.
func (r *volumes) remove(id, target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.byID[id]; v != nil && v.Target == target {
		delete(r.byID, id)
		delete(r.inherited, id)
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
	paths, err := tmpfs.List(d.config.Name)
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
	d.volumes.inherit(v.VolumeID, memoryOf(v))
	d.manage(ctx, v)
	return nil
}

// memoryOf returns how much memory a mounted volume takes, or the usual amount if that is
// not known.
func memoryOf(v *volume.Volume) int64 {
	target, err := v.Open()
	if err != nil {
		return volumeMemory
	}
	defer target.Close()
	usage, err := tmpfs.Stat(target)
	if err != nil {
		return volumeMemory
	}
	return usage.Bytes - usage.BytesFree + kernelMemory
}
