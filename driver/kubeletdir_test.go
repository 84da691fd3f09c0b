package driver

import "testing"

func TestKubeletDirOf(t *testing.T) {
	const rest = "pods/d41d8cd9/volumes/kubernetes.io~csi/tls/mount"
	for target, want := range map[string]string{
		"/var/lib/kubelet/" + rest:                          "/var/lib/kubelet",
		"/var/snap/microk8s/common/var/lib/kubelet/" + rest: "/var/snap/microk8s/common/var/lib/kubelet",
		"/pods/" + rest:                                     "/pods",
		"/" + rest:                                          "/",
		rest:                                                "",
		"/var/lib/kubelet/pods/d41d8cd9/volumes/kubernetes.io~csi/tls":     "",
		"/var/lib/kubelet/pods/volumes/kubernetes.io~csi/tls/mount":        "",
		"/var/lib/kubelet/plugins/kubernetes.io/csi/pv/tls/globalmount":    "",
		"/var/lib/kubelet/pods/d41d8cd9/volumes/kubernetes.io~nfs/x/mount": "",
		"/etc": "",
	} {
		directory, relative := kubeletDirOf(target)
		if directory != want || want != "" && relative != rest {
			t.Errorf("%s: %q, %q", target, directory, relative)
		}
	}
}
