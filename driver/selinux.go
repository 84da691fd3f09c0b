package driver

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

// seLinuxContext returns the SELinux context among the mount flags, or "". The kubelet
// passes it as context="…", if the CSIDriver object has seLinuxMount: true. The quotes
// are not part of it: they protect its commas. Other mount flags have no effect: the
// mount is always read-only, without devices, setuid and execution. See
// https://github.com/kubernetes/enhancements/tree/master/keps/sig-storage/1710-selinux-relabeling.
func seLinuxContext(mountFlags []string) (string, error) {
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
