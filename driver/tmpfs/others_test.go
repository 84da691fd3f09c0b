package tmpfs

import (
	"slices"
	"testing"
)

// Only whole tmpfs mounts of other sources at paths of volumes are listed, and nothing that
// somebody mounts hides one.
func TestListOthers(t *testing.T) {
	const good = "36 35 0:30 / /kubelet/pods/1/volumes/kubernetes.io~csi/tls/mount ro,nosuid shared:1 - tmpfs tls.example.com rw,size=1024k\n"
	want := []Other{{"tls.example.com", "/kubelet/pods/1/volumes/kubernetes.io~csi/tls/mount"}}
	const part = "/volumes/kubernetes.io~csi/"
	for name, line := range map[string]string{
		"an own volume":        "36 35 0:30 / /kubelet/pods/1/volumes/kubernetes.io~csi/a/mount ro - tmpfs csi.example rw",
		"another file system":  "36 35 0:30 / /kubelet/pods/1/volumes/kubernetes.io~csi/a/mount ro - ext4 tls.example.com rw",
		"a part of a volume":   "36 35 0:30 /tls.crt /kubelet/pods/1/volumes/kubernetes.io~csi/a/mount ro - tmpfs tls.example.com rw",
		"another kind":         "36 35 0:30 / /kubelet/pods/1/volumes/kubernetes.io~secret/a ro - tmpfs tmpfs rw",
		"the part as a source": "36 35 0:30 / /x ro - tmpfs /volumes/kubernetes.io~csi/ rw",
		"no device":            "36 35 030 / /kubelet/pods/1/volumes/kubernetes.io~csi/a/mount ro - tmpfs tls.example.com rw",
		"an empty source":      "36 35 0:30 / /kubelet/pods/1/volumes/kubernetes.io~csi/a/mount ro - tmpfs  rw",
		"an empty line":        "",
	} {
		if got := listOthers(line+"\n"+good, "csi.example", part); !slices.Equal(got, want) {
			t.Errorf("%s: got %q", name, got)
		}
	}
	if got := listOthers(`36 35 0:30 / /a\040b/volumes/kubernetes.io~csi/c/mount ro - tmpfs x\040y rw`, "csi.example", part); !slices.Equal(got, []Other{{"x y", "/a b/volumes/kubernetes.io~csi/c/mount"}}) {
		t.Errorf("escaped: got %q", got)
	}
}
