package driver

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// seLinuxContext returns the SELinux context of the volume, or "" if the node does not have
// SELinux: the kernel then rejects a context. The mount is read-only in any case. But with
// SELinux, the container runtime relabels a volume that has neither a context nor readOnly.
func (d *Driver) seLinuxContext(req *csi.NodePublishVolumeRequest, pod issuer.Pod) (string, error) {
	if !d.config.SELinux {
		return "", nil
	}
	context, err := contextFlag(req.GetVolumeCapability().GetMount().GetMountFlags())
	if err != nil {
		return "", err
	}
	context = cmp.Or(context, d.config.SELinuxContext)
	if context == "" && !req.GetReadonly() {
		return "", fmt.Errorf("the node has SELinux, and the kubelet has passed no SELinux context: "+
			"the container runtime would relabel the volume, and fail, because the volume is read-only; "+
			"in pod %s/%s, add the line readOnly: true to the volume, below csi: and driver: %s, or set seLinuxContext in the chart (--selinux-context)",
			pod.Namespace, pod.Name, d.config.Name)
	}
	return context, nil
}

// contextFlag returns the SELinux context among the mount flags, or "". The kubelet
// passes it as context="…", if the CSIDriver object has seLinuxMount: true. The quotes
// are not part of it: they protect its commas. Other mount flags have no effect: the
// mount is always read-only, without devices, setuid and execution. See
// https://github.com/kubernetes/enhancements/tree/master/keps/sig-storage/1710-selinux-relabeling.
func contextFlag(mountFlags []string) (string, error) {
	for _, flag := range mountFlags {
		context, is := strings.CutPrefix(flag, "context=")
		switch {
		case !is:
			continue
		case !strings.HasPrefix(context, `"`):
			return context, nil
		}
		context, err := strconv.Unquote(context)
		if err != nil {
			return "", fmt.Errorf("the mount flag %s is not quoted correctly", names.Quote(flag))
		}
		return context, nil
	}
	return "", nil
}
