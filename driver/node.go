package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

// publishTimeout is shorter than the kubelet's own timeout of two minutes, so that the
// kubelet receives the cause of a failure.
const publishTimeout = 100 * time.Second

// NodePublishVolume implements csi.NodeServer. The kubelet also calls it about every
// minute for a mounted volume, with a new token: see republish.
func (d *Driver) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	path, err := d.parseTarget(req.GetVolumeId(), "target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	unlock, err := d.locks.acquire(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()

	known := d.volumes.get(req.GetVolumeId())
	if known != nil && known.Target != path {
		return nil, fmt.Errorf("%w: the volume is published at %s", errConflict, known.Target)
	}
	mounted, err := volume.IsMounted(d.node, path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUncertain, err)
	}
	if other := d.volumes.at(path); mounted && known == nil && other != nil && !other.IsFound() {
		return nil, fmt.Errorf("%w: another volume is mounted at %s", errConflict, path)
	}
	spec, token, err := d.parsePublish(req, path)
	switch {
	case mounted && err != nil:
		klog.FromContext(ctx).Error(err, "Ignoring an invalid republish; the mounted volume is unchanged",
			"volumeID", req.GetVolumeId(), "target", req.GetTargetPath())
	case mounted:
		return &csi.NodePublishVolumeResponse{}, d.republish(ctx, known, spec, token)
	case err != nil:
		return nil, err
	default:
		if known != nil { // another process unmounted the volume
			d.volumes.remove(known.VolumeID, path)
			d.revokeLater(ctx, known, known.Abandon())
		}
		if err := d.checkPropagation(filepath.Dir(path)); err != nil {
			return nil, err
		}
		done, err := d.admit(ctx, spec)
		if err != nil {
			return nil, err
		}
		defer done()
		v, err := volume.Create(ctx, d.node, spec, token)
		if err != nil {
			return nil, err
		}
		d.manage(ctx, v)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// republish takes the new token and does not touch the mount. If the spec has changed,
// or the volume is not managed, republish adopts the volume again. The errors have codes
// that the kubelet does not treat as final: after a final code, older kubelets remove the
// directory of the running pod. See
// https://github.com/kubernetes/kubernetes/issues/121271.
func (d *Driver) republish(ctx context.Context, known *volume.Volume, spec volume.Spec, token issuer.Token) error {
	managed := known != nil && !errors.Is(known.Unmanaged(), volume.ErrGone)
	if managed {
		known.TakeToken(token)
	}
	if known != nil && known.Password.Given() {
		// The pod's spec does not change. If the Secret seems to be gone, it was emptied.
		spec.Password = spec.Password.OfSecret()
	}
	if managed && known.Same(spec) && known.Password == spec.Password {
		return nil
	}
	v, err := volume.Adopt(ctx, d.node, spec)
	if err != nil {
		return fmt.Errorf("%w: %w", errUncertain, err)
	}
	if slices.ContainsFunc(d.volumes.all(), v.SharesMount) {
		err := fmt.Errorf("%w: another volume is mounted at %s", errConflict, spec.Target)
		if known != nil {
			err = fmt.Errorf("%w: %w", errUncertain, err)
		}
		return err // without known, this is no republish: this volume was never mounted
	}
	if err := v.Unmanaged(); err != nil {
		klog.FromContext(ctx).Error(err, "Ignoring invalid attributes in a republish; the mounted volume is unchanged", v.LogValues()...)
		if managed {
			return nil
		}
	}
	if managed && known.Same(spec) {
		klog.FromContext(ctx).Info("The password of the key stores has changed", v.LogValues()...)
	}
	v.TakeToken(token)
	d.manage(ctx, v)
	return nil
}

// NodeUnpublishVolume implements csi.NodeServer. It succeeds for a volume that is
// unknown or partly removed.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	path, err := d.parseTarget(req.GetVolumeId(), "target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	unlock, err := d.locks.acquire(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer unlock()
	v := d.volumes.at(path)
	if v != nil && v.VolumeID != req.GetVolumeId() && !v.IsFound() {
		return nil, fmt.Errorf("%w: another volume is mounted at %s", errConflict, path)
	}
	var revocation *issuer.Revocation
	if v != nil {
		revocation, err = v.Close()
	} else {
		err = volume.Detach(d.node, path)
	}
	if err != nil {
		return nil, err
	}
	d.volumes.remove(req.GetVolumeId(), path)
	d.revokeLater(ctx, v, revocation)
	return &csi.NodeUnpublishVolumeResponse{}, d.node.Targets.Remove(path)
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

// parsePublish checks a request, except for the user's attributes: volume.Create checks
// those. The token is the pod's, or the zero value.
func (d *Driver) parsePublish(req *csi.NodePublishVolumeRequest, target string) (volume.Spec, issuer.Token, error) {
	capability := req.GetVolumeCapability()
	var problem error
	switch {
	case capability == nil:
		problem = errors.New("volume_capability is missing")
	case capability.GetBlock() != nil:
		problem = errors.New("a certificate volume is a file system, not a block device: remove volumeMode: Block")
	case capability.GetMount() == nil:
		problem = errors.New("volume_capability has no access type: mount is needed")
	}
	pod, user, err := attributes.Identity(req.GetVolumeContext(), d.config.NodeName)
	if problem == nil {
		problem = err
	}
	token, err := attributes.Token(req.GetSecrets(), req.GetVolumeContext(), issuer.TokenAudience)
	if problem == nil {
		problem = err
	}
	seLinux, err := d.seLinuxContext(req, pod)
	if problem == nil {
		problem = err
	}
	if problem != nil {
		return volume.Spec{}, issuer.Token{}, fmt.Errorf("%w: %w", errInvalid, problem)
	}
	return volume.Spec{
		VolumeID:   req.GetVolumeId(),
		Target:     target,
		Pod:        pod,
		Attributes: attributes.Normalize(user),
		MountGroup: capability.GetMount().GetVolumeMountGroup(),

		SELinuxContext: seLinux,
		Password:       payload.PasswordOf(req.GetSecrets()),
	}, token, nil
}

// parseTarget checks the volume's id and path, and returns the path relative to the
// kubelet's directory.
func (d *Driver) parseTarget(id, field, path string) (string, error) {
	if id == "" {
		return "", fmt.Errorf("%w: volume_id is missing", errInvalid)
	}
	if path == "" {
		return "", fmt.Errorf("%w: %s is missing", errInvalid, field)
	}
	relative, below := d.relative(path)
	if !below {
		advice := "if the kubelet has another --root-dir, set the chart value kubeletDir (the flag --kubelet-dir) to it"
		if root, _ := kubeletDirOf(path); root != "" {
			advice = fmt.Sprintf("the kubelet's --root-dir is %s: set the chart value kubeletDir (the flag --kubelet-dir) to it", root)
		}
		return "", fmt.Errorf("%w: %s %q is not below the kubelet's directory %s, as the node plugin knows it; %s",
			errInvalid, field, path, d.config.KubeletDir, advice)
	}
	return relative, nil
}

// relative returns the path relative to the kubelet's directory, and whether it lies below.
// The path must be absolute and clean. It may begin with another path of the same directory,
// such as a symbolic link: the kubelet's --root-dir and --kubelet-dir then differ.
func (d *Driver) relative(path string) (string, bool) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", false
	}
	if relative, err := filepath.Rel(d.config.KubeletDir, path); err == nil && relative != "." && filepath.IsLocal(relative) {
		return relative, true
	}
	// Only the part before pods/ may have links. No pod can write there.
	root, relative := kubeletDirOf(path)
	return relative, root != "" && d.node.Targets.Is(root)
}

// kubeletDirOf splits a target path into the kubelet's directory and the rest, by the form
// that the kubelet gives it: <directory>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount.
// For any other path, the directory is empty.
func kubeletDirOf(target string) (directory, rest string) {
	parts := strings.Split(target, "/")
	at := len(parts) - 6
	if at < 1 || nameInPod(target) == "" || parts[at] != podsDir || parts[at+2] != "volumes" {
		return "", ""
	}
	return cmp.Or(strings.Join(parts[:at], "/"), "/"), strings.Join(parts[at:], "/")
}
