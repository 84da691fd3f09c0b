package driver

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
)

// parsePublish refuses a request that cannot be right, and makes the record of
// the volume at target out of one that can. The user's attributes are checked
// later. The token is the pod's, if there is one.
func (d *Driver) parsePublish(req *csi.NodePublishVolumeRequest, target string) (record, issuer.Token, error) {
	capability := req.GetVolumeCapability()
	switch {
	case capability == nil:
		return record{}, issuer.Token{}, invalid(errors.New("volume_capability is missing"))
	case capability.GetBlock() != nil:
		return record{}, issuer.Token{}, invalid(errors.New("a certificate volume is a file system, not a block device: remove volumeMode: Block"))
	case capability.GetMount() == nil:
		return record{}, issuer.Token{}, invalid(errors.New("volume_capability has no access type: mount is needed"))
	}
	pod, user, err := attributes.Identity(req.GetVolumeContext(), d.config.NodeName)
	if err != nil {
		return record{}, issuer.Token{}, invalid(err)
	}
	token, err := attributes.Token(req.GetSecrets(), req.GetVolumeContext(), issuer.TokenAudience)
	if err != nil {
		return record{}, issuer.Token{}, invalid(err)
	}
	if !req.GetReadonly() {
		return record{}, issuer.Token{}, invalid(fmt.Errorf(
			"the volume is read-only: in pod %s/%s, add the line readOnly: true to the volume, below csi: and driver: %s",
			pod.Namespace, pod.Name, d.config.Name))
	}
	return record{
		VolumeID:   req.GetVolumeId(),
		Target:     target,
		Pod:        pod,
		Attributes: user,
		MountGroup: capability.GetMount().GetVolumeMountGroup(),
	}, token, nil
}

// parseTarget checks the volume's id and path, and returns the path relative to
// the kubelet's directory.
func (d *Driver) parseTarget(id, field, path string) (string, error) {
	if id == "" {
		return "", invalid(errors.New("volume_id is missing"))
	}
	if path == "" {
		return "", invalid(fmt.Errorf("%s is missing", field))
	}
	relative, below := d.relative(path)
	if !below {
		return "", invalid(fmt.Errorf(
			"%s %q is not below the kubelet's directory %s: if the kubelet has another --root-dir, set --kubelet-dir to it",
			field, path, d.config.KubeletDir))
	}
	return relative, nil
}

// relative tells where a path is below the kubelet's directory. It must be
// written in the one way that has no detours.
func (d *Driver) relative(path string) (string, bool) {
	relative, err := filepath.Rel(d.config.KubeletDir, path)
	return relative, err == nil && filepath.IsAbs(path) && filepath.Clean(path) == path && relative != "." && filepath.IsLocal(relative)
}
