package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
)

// publishTimeout makes the driver answer before the kubelet, which waits for
// two minutes, gives up: the kubelet then knows why.
const publishTimeout = 100 * time.Second

// NodePublishVolume implements csi.NodeServer.
func (d *Driver) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	id := req.GetVolumeId()
	path, err := d.parseTarget(id, "target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	release, err := d.locks.acquire(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	mounted, err := d.recordAt(ctx, path, id)
	if err != nil {
		return nil, err
	}
	wanted, token, err := d.parsePublish(req, path)
	switch {
	case mounted != nil && mounted.VolumeID != id:
		return nil, fmt.Errorf("%w: another volume is mounted at %s", errConflict, req.GetTargetPath())
	case mounted != nil && err != nil:
		klog.FromContext(ctx).Error(err, "A mounted volume is wanted in a way that is refused; it stays as it is", mounted.logValues()...)
	case mounted != nil:
		d.republish(ctx, *mounted, wanted, token)
	case err != nil:
		return nil, err
	default:
		return &csi.NodePublishVolumeResponse{}, d.publish(ctx, wanted, token)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// publish makes a volume that is not mounted.
func (d *Driver) publish(ctx context.Context, wanted record, token issuer.Token) error {
	if v := d.tracked(wanted.VolumeID); v != nil {
		if v.record.Target != wanted.Target {
			return fmt.Errorf("%w: the volume is published at %s already", errConflict, v.record.Target)
		}
		d.untrack(wanted.VolumeID) // it was unmounted behind our back
	}
	v, err := d.newVolume(wanted)
	if err != nil {
		return invalid(err)
	}
	if v.attributes.RevokeOnDelete && !d.authorities[v.attributes.Issuer].issuer.CanRevoke() {
		return invalid(fmt.Errorf("revoke-on-delete: the issuer %s cannot revoke; leave it out", v.attributes.Issuer))
	}
	v.take(token)
	// The kubelet has made the target's parent. To ask the CA for a volume that
	// cannot be attached would waste a certificate.
	parent, err := d.targets.Open(filepath.Dir(wanted.Target))
	if err != nil {
		return err
	}
	parent.Close()
	if err := d.create(ctx, v); err != nil {
		return err
	}
	d.track(v)
	v.logNoSVID(ctx)
	return nil
}

// republish leaves the mount alone and cannot fail: older kubelets answer an
// error by removing the directory under the running pod. It takes the new token.
// If the volume is to look different now, a renewal is due at once. See
// https://github.com/kubernetes/kubernetes/issues/121271.
func (d *Driver) republish(ctx context.Context, mounted, wanted record, token issuer.Token) {
	tracked := d.tracked(wanted.VolumeID)
	if tracked != nil {
		tracked.take(token)
	}
	if tracked != nil && mounted.sameSpec(wanted) {
		return
	}
	wanted.Issued, wanted.NotAfter, wanted.Serial = mounted.Issued, mounted.NotAfter, mounted.Serial
	v := d.takeOver(wanted)
	if v.err != nil {
		klog.FromContext(ctx).Error(v.err, "The new attributes of a mounted volume are refused; it stays as it is", wanted.logValues()...)
		return
	}
	v.take(token)
	d.untrack(wanted.VolumeID)
	d.track(v)
	if !mounted.sameSpec(wanted) {
		v.item.Renew()
	}
}

// recordAt returns the record of the volume that is mounted at the target path,
// or nil if there is none. One that cannot be read is taken for the wanted
// volume's, with nothing else in it: so it is made anew, and the mount stays.
func (d *Driver) recordAt(ctx context.Context, path, wanted string) (*record, error) {
	target, err := d.targets.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer target.Close()
	data, err := tmpfs.Record(target)
	if err != nil || data == nil {
		return nil, err
	}
	r, err := parseRecord(data)
	if err != nil {
		klog.FromContext(ctx).Error(err, "The mounted volume is renewed at once", "volumeID", wanted)
		return &record{VolumeID: wanted, Target: path}, nil
	}
	d.correct(&r, target)
	return &r, nil
}

// NodeUnpublishVolume implements csi.NodeServer. It succeeds for a volume that
// is unknown or half gone.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	path, err := d.parseTarget(req.GetVolumeId(), "target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	release, err := d.locks.acquire(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer release()
	last := d.openToRevoke(req.GetVolumeId(), path)
	if last != nil {
		defer last.Close()
	}
	if err := d.detach(req.GetVolumeId(), path); err != nil {
		return nil, err
	}
	d.release(ctx, req.GetVolumeId(), path, last)
	return &csi.NodeUnpublishVolumeResponse{}, d.targets.Remove(path)
}

// release ends the renewal of the volume that was at the target path. last is what
// was in it.
func (d *Driver) release(ctx context.Context, id, path string, last *os.Root) {
	if v := d.tracked(id); v == nil || v.record.Target != path {
		return
	}
	v := d.untrack(id)
	if v.attributes.RevokeOnDelete {
		r := v.revocation(last)
		ctx := klog.NewContext(d.background, klog.FromContext(ctx))
		d.ending.Go(func() { d.revoke(ctx, v, r) })
	}
}

// detach takes the volume away from the target path, however often it is
// mounted there.
func (d *Driver) detach(id, path string) error {
	for {
		target, err := d.targets.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := tmpfs.Record(target)
		if err == nil && data != nil {
			if ofAnother(data, id) {
				target.Close()
				return fmt.Errorf("%w: another volume is mounted at %s", errConflict, path)
			}
			err = tmpfs.Detach(target)
		}
		target.Close()
		if err != nil || data == nil {
			return err
		}
	}
}

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.config.NodeName}, nil
}

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, kind := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: kind}},
		})
	}
	return answer, nil
}
