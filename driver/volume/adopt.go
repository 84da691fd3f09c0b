package volume

import (
	"context"
	"fmt"
	"os"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
)

// Adopt takes over the volume that is mounted at the path: a volume of an earlier
// process, or a volume that was hidden for a while. wanted is the kubelet's request; if
// it is nil, the volume's own record applies. A damaged volume, or one with a different
// request, is renewed at once. Adopt returns nil for the bind mount of a volume from
// elsewhere, and ErrGone if no volume is visible at the path.
func Adopt(ctx context.Context, n *Node, path string, wanted *Spec) (*Volume, error) {
	target, err := n.Targets.Open(path)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	data, err := tmpfs.Record(target)
	if err != nil {
		return nil, err
	}
	if data == nil {
		return nil, fmt.Errorf("%w at %s", ErrGone, path)
	}
	record, damage := ParseRecord(data)
	switch {
	case wanted == nil && damage != nil:
		return nil, damage
	case wanted == nil && record.Target != path:
		return nil, nil
	case wanted == nil:
		wanted = &record.Spec
	case damage == nil && record.VolumeID != wanted.VolumeID:
		return nil, fmt.Errorf("%w: %s", ErrConflict, path)
	}
	v := newVolume(n, *wanted)
	v.certificate = record.certificate
	if damage == nil {
		root, err := tmpfs.Root(target)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		damage = v.takeCertificate(root, record)
	}
	v.renewFirst = damage != nil || !record.Same(*wanted)
	if damage != nil {
		klog.FromContext(ctx).Error(damage, "A mounted volume is damaged; it is renewed at once", v.LogValues()...)
	}
	return v, nil
}

// takeCertificate reads which certificate is mounted, and returns its damage. A process
// that was killed after it wrote the files, but before the record, has left the record
// of the previous certificate.
func (v *Volume) takeCertificate(root *os.Root, record Record) error {
	mounted, err := attributes.Parse(record.Attributes, record.Pod, record.MountGroup, v.node.Attributes)
	if err != nil {
		return nil // its file names are unknown; the volume is unfit, or renewed at once
	}
	contents, err := Check(root, payload.NamesOf(mounted))
	if err != nil {
		return err
	}
	if record.Fits(contents) != nil {
		v.certificate = certificate{Issued: contents.Written, NotAfter: contents.Leaf.NotAfter, Serial: contents.Leaf.SerialNumber.String()}
	}
	return nil
}
