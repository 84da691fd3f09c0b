package chart

import "testing"

// "step-csi status" needs no flag in the node plugin's pod, whatever the driver's name and
// the kubelet's directory are.
func TestStatusSocket(t *testing.T) {
	for values, directory := range map[string]string{
		"verbosity=0": "/var/lib/kubelet/plugins/csi.step-ca.io",
		"driverName=tls.example.com,kubeletDir=/var/lib/k0s/kubelet": "/var/lib/k0s/kubelet/plugins/tls.example.com",
	} {
		container := at(render(t, "--set", values)["DaemonSet"], "spec", "template", "spec", "containers").([]any)[0]
		mounted, socket := false, ""
		for _, mount := range at(container, "volumeMounts").([]any) {
			mounted = mounted || at(mount, "mountPath") == directory
		}
		for _, variable := range at(container, "env").([]any) {
			if at(variable, "name") == "STEP_CSI_STATUS_SOCKET" {
				socket, _ = at(variable, "value").(string)
			}
		}
		if !mounted || socket != directory+"/status.sock" {
			t.Errorf("%s: mounted: %v, socket %s", values, mounted, socket)
		}
	}
}
