package driver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/cgroup"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

const (
	// volumeMemory is what the kernel and the plugin keep for a volume. About 30 KiB with
	// the first files, 55 KiB after two renewals; 95 KiB with the most and longest names
	// and an RSA-4096 key. See docs/configuration.md.
	volumeMemory = 64 << 10
	// renewalMemory is how much of it a volume takes at its first renewal.
	renewalMemory = 32 << 10
	// mostProcessMemory is what the process takes without volumes, or a quarter of the
	// limit if that is less.
	mostProcessMemory = 64 << 20
	// kernelMemory is what the kernel keeps for a volume beside its files.
	kernelMemory = 24 << 10
)

// errExhausted means that a volume exceeds a limit. The kubelet retries, and does not
// touch the mounted volumes.
var errExhausted = errors.New("limit reached")

// The limits, as the metric names them.
const (
	limitPod    = "pod"
	limitNode   = "node"
	limitMemory = "memory"
)

// quota decides whether another volume may be published. It never applies to mounted
// volumes. The zero value has no limits.
type quota struct {
	perPod, perNode int // volumes; zero means no limit
	// memory returns the usage of the plugin's control group; ok is false without a limit.
	memory func() (usage cgroup.Usage, ok bool, err error)
	// blind means that memory does not show the volumes of earlier containers of the pod.
	blind bool
	// problem is why the control group is not known.
	problem error
	// refused counts the refusals.
	refused func(limit string)
}

// volumeCount counts volumes: mounted ones and those that are being published.
type volumeCount struct {
	ofPod, mounted, publishing int
	inherited                  int64 // memory of the volumes of earlier processes, in bytes
	// extra is the memory of the mounted volumes beyond the usual one, in bytes, and beginning
	// that of the volumes that are being published, with the one that asks.
	extra, beginning int64
}

func newQuota(c Config, refused func(limit string)) quota {
	q := quota{perPod: c.VolumesPerPod, perNode: c.VolumesPerNode, refused: refused}
	var own *cgroup.Memory
	if own, q.problem = cgroup.OwnMemory(); own != nil {
		q.memory, q.blind = own.Usage, !own.SeesParent()
	}
	return q
}

// leastProcessMemory is what the process needs to work without collecting garbage all the time.
const leastProcessMemory = 16 << 20

// limitProcess has the process collect its garbage before it grows into the room of the volumes.
// Otherwise, the kernel may kill it while it adopts many volumes after a restart, although it needs
// less. GOMEMLIMIT replaces this limit.
func (q quota) limitProcess() {
	if q.memory == nil || debug.SetMemoryLimit(-1) != math.MaxInt64 { // GOMEMLIMIT is set
		return
	}
	if usage, limited, err := q.memory(); err == nil && limited { // admit logs the error
		debug.SetMemoryLimit(max(usage.Limit-roomIn(usage.Limit), leastProcessMemory))
	}
}

// gauges return the memory limit and the usage that counts, or 0 without a limit.
func (q quota) gauges() []prometheus.Collector {
	gauge := func(name, help string, value func(cgroup.Usage) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if q.memory == nil {
				return 0
			}
			usage, _, _ := q.memory() // admit logs the error
			return float64(value(usage))
		})
	}
	return []prometheus.Collector{
		gauge("step_csi_memory_limit_bytes", "Memory limit of the node plugin's control group; 0 if there is none.",
			func(u cgroup.Usage) int64 { return u.Limit }),
		gauge("step_csi_memory_used_bytes", "Memory of the control group in use by the node plugin and by mounted volumes, without what the kernel can free; 0 without a limit.",
			func(u cgroup.Usage) int64 { return u.Used }),
	}
}

// admit reserves a place for the volume. The caller must call done when the volume is
// registered, or when its publish has failed.
func (d *Driver) admit(ctx context.Context, s volume.Spec) (done func(), err error) {
	var usage cgroup.Usage
	limited := false
	if d.quota.memory != nil {
		if usage, limited, err = d.quota.memory(); err != nil {
			// Better without this check than without certificates.
			klog.FromContext(ctx).Error(err, "Cannot read the node plugin's memory usage; volumes are not limited by it")
		}
	}
	limit, err := d.volumes.reserve(s.VolumeID, place{s.Pod.UID, volume.ExtraMemory(d.node, s)}, func(n volumeCount) (string, error) {
		if !limited {
			return d.quota.check(s.Pod, n, nil)
		}
		return d.quota.check(s.Pod, n, &usage)
	})
	if err != nil {
		d.quota.refused(limit)
		return nil, fmt.Errorf("%w: %w", errExhausted, err)
	}
	return func() { d.volumes.release(s.VolumeID) }, nil
}

// check returns the limit that another volume of the pod exceeds. usage is nil without a
// memory limit.
func (q quota) check(pod issuer.Pod, n volumeCount, usage *cgroup.Usage) (limit string, err error) {
	all := n.mounted + n.publishing
	switch {
	case q.perPod > 0 && n.ofPod >= q.perPod:
		return limitPod, fmt.Errorf("pod %s/%s has %d volumes of this driver; %d are allowed: "+
			"use fewer volumes, or raise limits.volumesPerPod in the chart's values", pod.Namespace, pod.Name, n.ofPod, q.perPod)
	case q.perNode > 0 && all >= q.perNode:
		return limitNode, fmt.Errorf("the node has %d volumes of this driver; %d are allowed: "+
			"move pods to other nodes, or raise limits.volumesPerNode in the chart's values", all, q.perNode)
	case usage == nil:
		return "", nil
	}
	extra := n.extra + n.beginning
	if room := roomIn(usage.Limit); extra > 0 && int64(all+1)*volumeMemory+extra > room {
		return limitMemory, fmt.Errorf("the node has %d volumes of this driver, and %s of their files are roots beyond a usual number; the node plugin's memory limit of %s has room for %s in all: "+
			"move pods to other nodes, add fewer roots, or raise resources.limits.memory in the chart's values", all, mebibytes(extra), mebibytes(usage.Limit), mebibytes(room))
	}
	if most := volumesIn(usage.Limit); all >= most {
		return limitMemory, fmt.Errorf("the node has %d volumes of this driver; the node plugin's memory limit of %s has room for %d: "+
			"move pods to other nodes, or raise resources.limits.memory in the chart's values", all, mebibytes(usage.Limit), most)
	}
	if q.blind {
		usage.Used += n.inherited
	}
	reserved := usage.Limit/8 + int64(n.mounted)*renewalMemory + n.extra/2 + int64(n.publishing+1)*volumeMemory + n.beginning
	if usage.Free() < reserved {
		return limitMemory, fmt.Errorf("the node plugin uses %s of its memory limit of %s, and keeps %s free for the renewals of %d volumes: "+
			"move pods to other nodes, or raise resources.limits.memory in the chart's values",
			mebibytes(usage.Used), mebibytes(usage.Limit), mebibytes(reserved), all)
	}
	return "", nil
}

// volumesIn returns how many volumes a memory limit has room for, beside the process and a
// reserve of an eighth. It counts all volumes: those of an earlier container of the pod
// are charged to the pod, which the process often cannot see.
func volumesIn(limit int64) int { return int(roomIn(limit) / volumeMemory) }

// roomIn returns how much of a memory limit is for volumes.
func roomIn(limit int64) int64 { return limit - limit/8 - min(mostProcessMemory, limit/4) }

func mebibytes(n int64) string { return fmt.Sprintf("%.1fMi", float64(n)/(1<<20)) }
