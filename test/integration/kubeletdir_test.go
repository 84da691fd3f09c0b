package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// The kubelet's directory has several paths, by symbolic links. The kubelet says one of
// them, the node plugin is configured with one, and the kernel knows the real one. Whichever
// they are, the plugin publishes, finds volumes after a restart, renews them, and removes
// them.
func TestKubeletDirectoryBehindLinks(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for name, c := range map[string]struct{ configured, kubelet string }{
		"a link for both":                         {"link", "link"},
		"below a link for both":                   {"parent/kubelet", "parent/kubelet"},
		"a link to a link for both":               {"second", "second"},
		"a link for the plugin":                   {"link", "kubelet"},
		"a link for the kubelet":                  {"kubelet", "link"},
		"below a link for the kubelet":            {"kubelet", "parent/kubelet"},
		"two different links":                     {"second", "parent/kubelet"},
		"dots in the configuration, and no links": {"kubelet/../kubelet", "kubelet"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := node.New(t, binary, ca)
			base, real := filepath.Dir(n.KubeletDir), n.KubeletDir
			for link, to := range map[string]string{"link": "kubelet", "second": "link", "parent": "."} {
				node.Must(t, os.Symlink(to, filepath.Join(base, link)))
			}
			n.Flags = []string{"--kubelet-dir", base + "/" + c.configured}
			n.Start()
			k := node.NewKubelet(t, filepath.Join(base, c.kubelet))
			p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "12s"}}
			k.Publish(p)
			if mounted := n.Mounts(); len(mounted) != 1 || mounted[0] != n.Target(p) {
				t.Errorf("the kernel has %q mounted, want %q", mounted, n.Target(p))
			}
			k.Publish(p) // again
			certificate := func() []byte {
				data, err := os.ReadFile(filepath.Join(k.Target(p), "tls.crt"))
				node.Must(t, err)
				return data
			}
			n.Kill()
			n.Start()
			node.Eventually(t, patience, "the restarted plugin has found the volume", func() bool { return n.Logs.Has(logs.Found + ` count=1`) })
			k.Publish(p)
			first := certificate()
			node.Eventually(t, patience, "a renewal after the restart", func() bool { return !bytes.Equal(first, certificate()) })
			// The files change while verify reads them.
			node.Eventually(t, patience, "verify accepts the files", func() bool { return binary.Command("verify", k.Target(p)).Run() == nil })
			node.Eventually(t, patience, "a healthy volume", func() bool {
				health, err := k.Health(p)
				return err == nil && len(health) == 0
			})
			k.Unpublish(p)
			n.ExpectGone(p)
			if mounted := n.Mounts(); len(mounted) > 0 {
				t.Errorf("still mounted below %s: %q", real, mounted)
			}
		})
	}
}

// The error names the value to set, and what the right value is.
func TestTargetOutsideOfTheKubeletDirectory(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	k := node.NewKubelet(t, filepath.Join(filepath.Dir(n.KubeletDir), "data/kubelet"))
	p := node.Pod{Name: "web-0"}
	request := k.MustRequest(p)
	_, err := n.NodePublishVolume(t.Context(), request)
	for _, want := range []string{
		`target_path "` + k.Target(p) + `" is not below the kubelet's directory ` + n.KubeletDir,
		"the kubelet's --root-dir is " + k.KubeletDir + ": set the chart value kubeletDir (the flag --kubelet-dir) to it",
	} {
		expect(t, err, codes.InvalidArgument, want)
	}
	request.TargetPath = "/somewhere/else"
	_, err = n.NodePublishVolume(t.Context(), request)
	expect(t, err, codes.InvalidArgument, "if the kubelet has another --root-dir, set the chart value kubeletDir")
	if _, err := os.Lstat(k.Target(p)); err == nil {
		t.Error("the plugin made the target")
	}
}

// The kubelet passes a static pod's volume without a service account.
func TestStaticPod(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-node-1", UID: "d41d8cd98f00b204e9800998ecf8427e"}
	request := n.MustRequest(p)
	request.VolumeContext["csi.storage.k8s.io/serviceAccount.name"] = ""
	_, err := n.NodePublishVolume(t.Context(), request)
	expect(t, err, codes.InvalidArgument, "pod shop/web-node-1 has no service account, and so no token that proves its identity, because it is a static pod: run it as a Deployment or DaemonSet")
	n.ExpectGone(p)
}
