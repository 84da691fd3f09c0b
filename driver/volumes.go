package driver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

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
	// byTarget are these volumes by target path, and those of an earlier process until the
	// kubelet publishes them. Of the latter, only the record says whose they are: see
	// volume.Find.
	byTarget map[string]*volume.Volume
	// unread are the target paths of mounted volumes that could not be read, with the reason.
	unread map[string]error
	// inherited is the memory in bytes of the volumes that earlier processes mounted, by
	// target path, and inAll is its sum.
	inherited map[string]int64
	inAll     int64
	// publishing are the volumes that are being published, by volume id.
	publishing map[string]place
	// ofPod is the number of volumes in byID and in publishing, by the pod's UID.
	ofPod map[string]int
}

// place is that of a volume that is being published.
type place struct {
	uid   string // of the pod
	extra int64  // memory in bytes beyond that of a usual volume
}

func (r *volumes) get(id string) *volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[id]
}

// at returns the volume at the target path, or nil.
func (r *volumes) at(target string) *volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byTarget[target]
}

// put registers the volume, and returns the volume that it replaces: the one with its id,
// or the one that was found at its target path.
func (r *volumes) put(v *volume.Volume) (previous *volume.Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	previous = r.byID[v.VolumeID]
	if previous != nil {
		r.uncount(previous.Pod.UID)
	} else {
		previous = r.byTarget[v.Target]
	}
	set(&r.byID, v.VolumeID, v)
	set(&r.byTarget, v.Target, v)
	delete(r.unread, v.Target)
	r.count(v.Pod.UID)
	r.unreserve(v.VolumeID)
	return previous
}

// putFound registers a volume of an earlier process, which takes so many bytes of memory.
func (r *volumes) putFound(v *volume.Volume, memory int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set(&r.byTarget, v.Target, v)
	r.inherit(v.Target, memory)
}

// putUnread registers the target path of a volume of an earlier process that cannot be
// read, with the usual memory.
func (r *volumes) putUnread(target string, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set(&r.unread, target, reason)
	r.inherit(target, volumeMemory)
}

// inherit sets the inherited memory at the target path.
func (r *volumes) inherit(target string, memory int64) {
	r.inAll += memory - r.inherited[target]
	set(&r.inherited, target, memory)
}

// remove removes the volume at the target path, even if it could not be read.
func (r *volumes) remove(id, target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.byID[id]; v != nil && v.Target == target {
		delete(r.byID, id)
		r.uncount(v.Pod.UID)
	}
	delete(r.byTarget, target)
	delete(r.unread, target)
	r.inAll -= r.inherited[target]
	delete(r.inherited, target)
}

// reserve reserves a place for another volume if check allows it. Either put or release ends
// the reservation.
func (r *volumes) reserve(id string, p place, check func(volumeCount) (limit string, err error)) (limit string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := volumeCount{ofPod: r.ofPod[p.uid], mounted: len(r.byTarget) + len(r.unread), publishing: len(r.publishing), inherited: r.inAll, beginning: p.extra}
	for _, other := range r.publishing {
		n.beginning += other.extra
	}
	for _, v := range r.byTarget {
		n.extra += v.ExtraMemory()
	}
	if limit, err = check(n); err != nil {
		return limit, err
	}
	set(&r.publishing, id, p)
	r.count(p.uid)
	return "", nil
}

func (r *volumes) release(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unreserve(id)
}

func (r *volumes) unreserve(id string) {
	if p, found := r.publishing[id]; found {
		delete(r.publishing, id)
		r.uncount(p.uid)
	}
}

func (r *volumes) count(uid string) { set(&r.ofPod, uid, r.ofPod[uid]+1) }

func (r *volumes) uncount(uid string) {
	if r.ofPod[uid]--; r.ofPod[uid] == 0 {
		delete(r.ofPod, uid)
	}
}

// set sets an element of a map that may be nil.
func set[K comparable, V any](m *map[K]V, key K, value V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[key] = value
}

func (r *volumes) countUnread() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.unread)
}

// allUnread returns the volumes that could not be read: the reason by target path.
func (r *volumes) allUnread() map[string]error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.unread)
}

func (r *volumes) all() []*volume.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.byTarget))
}

// allFound returns the volumes of an earlier process that the kubelet has not published.
func (r *volumes) allFound() []*volume.Volume {
	return slices.DeleteFunc(r.all(), func(v *volume.Volume) bool { return !v.IsFound() })
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
			d.volumes.putUnread(relative, err)
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
	d.volumes.putFound(v, memoryOf(v))
	v.Keep(ctx)
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
