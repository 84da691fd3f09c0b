package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/tmpfs"
)

// ErrElsewhere means that the record names another path: the mount is a bind mount of the
// volume there, or the record is forged.
var ErrElsewhere = errors.New("the record is that of a volume at another path")

// Find finds the volume of an earlier process that is mounted at the path, and describes it
// by its record. A pod may have forged the record. Therefore the volume follows the roots,
// which can harm only that pod, and is neither renewed nor trusted otherwise until Adopt
// replaces it. Find opens no file in the volume.
func Find(n *Node, path string) (*Volume, error) {
	target, err := n.Targets.Open(path)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	data, err := openRecord(target, path)
	if err != nil {
		return nil, err
	}
	record, err := ParseRecord(data)
	if err != nil {
		return nil, err
	}
	if record.Target != path {
		return nil, fmt.Errorf("%w: %q", ErrElsewhere, record.Target)
	}
	v := newVolume(n, record.Spec)
	v.certificate, v.found = record.certificate, time.Now()
	if v.TrustOnly() {
		v.certificate = certificate{}
	}
	v.extra.Store(v.estimate())
	if v.device, err = tmpfs.Device(target); err != nil {
		return nil, err
	}
	return v, nil
}

// openRecord returns the record at target. The error is ErrGone if no volume is visible.
func openRecord(target *os.File, path string) ([]byte, error) {
	data, err := tmpfs.Record(target)
	if err == nil && data == nil {
		err = fmt.Errorf("%w at %s", ErrGone, path)
	}
	return data, err
}

// Adopt takes over the volume that is mounted at the target path, for the kubelet's
// request: a volume of an earlier process, or a volume that was hidden for a while. A
// volume that is damaged, or whose record differs from the request, is renewed at once.
// The error is ErrGone if no volume is visible at the path.
func Adopt(ctx context.Context, n *Node, wanted Spec) (*Volume, error) {
	target, err := n.Targets.Open(wanted.Target)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	data, err := openRecord(target, wanted.Target)
	if err != nil {
		return nil, err
	}
	v := newVolume(n, wanted)
	if v.device, err = tmpfs.Device(target); err != nil {
		return nil, err
	}
	record, damage := ParseRecord(data)
	if damage == nil {
		damage = record.belongsTo(wanted)
	}
	if damage != nil {
		record = Record{Spec: wanted}
	}
	root, err := tmpfs.Root(target)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	v.certificate = record.certificate
	if broken := v.takeCertificate(root, record); damage == nil {
		damage = broken
	}
	if v.TrustOnly() {
		v.certificate = certificate{}
	}
	v.extra.Store(v.estimate())
	v.renewFirst = damage != nil || !record.Same(wanted)
	logger := klog.FromContext(ctx)
	switch {
	case errors.Is(damage, errForged):
		logger.Error(damage, "The record of a mounted volume contradicts the kubelet; the volume is renewed at once", v.LogValues()...)
	case damage != nil:
		logger.Error(damage, "A mounted volume is damaged; it is renewed at once", v.LogValues()...)
	}
	return v, nil
}

// errForged means that only a process with CAP_SYS_ADMIN can have written the record.
var errForged = errors.New("the record is not the one that the node plugin wrote; a container of the pod with CAP_SYS_ADMIN can have changed it")

// belongsTo compares the record with what the kubelet says. The identity of a pod never
// changes.
func (r Record) belongsTo(wanted Spec) error {
	if r.VolumeID == wanted.VolumeID && r.Target == wanted.Target && r.Pod == wanted.Pod {
		return nil
	}
	return fmt.Errorf("%w: volume %q at %q of pod %q, UID %q, service account %q, node %q", errForged,
		r.VolumeID, r.Target, r.Pod.Namespace+"/"+r.Pod.Name, r.Pod.UID, r.Pod.ServiceAccount, r.Pod.Node)
}

// takeCertificate reads which certificate is mounted, and returns its damage. A process
// that was killed after it wrote the files, but before the record, has left the record
// of the previous certificate.
func (v *Volume) takeCertificate(root *os.Root, record Record) error {
	mounted, err := attributes.Parse(record.Attributes, record.Pod, record.MountGroup, v.node.Attributes)
	if err != nil {
		return nil // its file names are unknown; the volume is unfit, or renewed at once
	}
	mounted.Files.KeyStorePassword = "" // not all volumes have it, and ReplaceRoots repairs it
	if mounted.TrustOnly {
		_, err := CheckTrust(root, mounted.Files)
		return err
	}
	contents, err := Check(root, mounted.Files)
	if err != nil {
		return err
	}
	if record.Fits(contents) != nil {
		v.certificate = certificate{Issued: contents.Written, NotAfter: contents.Leaf.NotAfter, Serial: contents.Leaf.SerialNumber.String()}
	}
	v.certificate.limit(contents.Chain.LimitedBy(), contents.Chain.NotAfter()) // the roots may have changed it
	return nil
}
