package integration

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// components returns the paths of all parts of the pod's target path below the
// kubelet's directory, by their names.
func components(n *node.Node, p node.Pod) map[string]string {
	all := map[string]string{}
	for path := n.Target(p); path != n.KubeletDir; path = filepath.Dir(path) {
		all[filepath.Base(path)] = path
	}
	return all
}

// plant moves path away and puts a symbolic link to it in its place, so that a
// program that follows the link finds everything unchanged. It works in another
// mount namespace, where the volume is not mounted: a mount point cannot be renamed
// in a namespace that has the mount.
func plant(t *testing.T, target, path, moved string) {
	t.Helper()
	link, err := filepath.Rel(filepath.Dir(path), moved)
	node.Must(t, err)
	inAnotherNamespace(t, `umount -l "$1" 2>/dev/null || :; mv "$2" "$3"; ln -s "$4" "$2"`, target, path, moved, link)
}

// uproot reverts plant.
func uproot(t *testing.T, target, path, moved string) {
	t.Helper()
	through := strings.Replace(target, path, moved, 1)
	inAnotherNamespace(t, `umount -l "$1" 2>/dev/null || :; rm "$2"; mv "$3" "$2"`, through, path, moved)
}

func inAnotherNamespace(t *testing.T, script string, args ...string) {
	t.Helper()
	command := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func refused(t *testing.T, operation string, err error) {
	t.Helper()
	if status.Code(err) == codes.OK || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("%s: %v", operation, err)
	}
}

// tree lists all paths below the directory.
func tree(t *testing.T, directory string) (all []string) {
	t.Helper()
	node.Must(t, filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	return all
}

// A publish and an unpublish follow no symbolic link in the target path, whether it
// leads out of the kubelet's directory or not.
func TestSymlinkBeforePublish(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	for place, directory := range map[string]string{"inside": n.KubeletDir, "outside": filepath.Dir(n.KubeletDir)} {
		p := node.Pod{Name: place}
		for name, path := range components(n, p) {
			t.Run(name+"/"+place, func(t *testing.T) {
				request := n.MustRequest(p)
				node.Must(t, os.MkdirAll(n.Target(p), 0o750))
				moved := filepath.Join(directory, "moved")
				plant(t, n.Target(p), path, moved)
				before := tree(t, moved)
				_, err := n.NodePublishVolume(t.Context(), request)
				refused(t, "publish", err)
				refused(t, "unpublish", n.TryUnpublish(p))
				if after := tree(t, moved); !slices.Equal(before, after) {
					t.Errorf("the files behind the link changed: before %q, after %q", before, after)
				}
				uproot(t, n.Target(p), path, moved)
				n.Unpublish(p)
			})
		}
	}
	if mounted, err := tmpfs.List(t.Context(), node.Driver); err != nil || len(mounted) > 0 || ca.Signs() > 0 {
		t.Errorf("mounted %q, error %v, %d signing requests", mounted, err, ca.Signs())
	}
}

// No call follows a link that is planted while the volume is mounted, even if it
// leads to the volume itself. Renewals continue when the link is removed.
func TestSymlinkPlanted(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for _, name := range []string{"pods", "uid-web-0", "volumes", "kubernetes.io~csi", "tls", "mount"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, ca)
			p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
			path, moved := components(n, p)[name], filepath.Join(n.KubeletDir, "moved")
			request := n.MustRequest(p)
			n.Publish(p)
			plant(t, n.Target(p), path, moved)
			certificate := func(target string) []byte {
				data, err := os.ReadFile(filepath.Join(target, "tls.crt"))
				node.Must(t, err)
				return data
			}
			before := certificate(strings.Replace(n.Target(p), path, moved, 1))
			expectRefusals(n, t, p, request)
			node.Eventually(t, time.Minute, "a renewal that fails because of the link", func() bool {
				_, log, failed := strings.Cut(n.Logs.String(), logs.RenewalFailed)
				return failed && strings.Contains(log, "symbolic link")
			})
			if !bytes.Equal(before, certificate(strings.Replace(n.Target(p), path, moved, 1))) {
				t.Error("the plugin renewed through the link")
			}
			uproot(t, n.Target(p), path, moved)
			// If a renewal ran while the path was missing, the plugin stopped renewing.
			// The next republish makes it continue.
			node.Eventually(t, time.Minute, "the renewal", func() bool {
				if n.Logs.Has(logs.RenewalsStopped) {
					n.Publish(p)
				}
				return !bytes.Equal(before, certificate(n.Target(p)))
			})

			// A restarted plugin that finds the link adopts no volume.
			plant(t, n.Target(p), path, moved)
			n.Kill()
			n.Start()
			if n.Logs.Has(logs.Found + ` count=1`) {
				t.Error("the plugin adopted a volume through the link")
			}
			refused(t, "unpublish after a restart", n.TryUnpublish(p))
			uproot(t, n.Target(p), path, moved)
			n.Unpublish(p)
			if mounted := n.Mounts(); len(mounted) > 0 {
				t.Errorf("mounted: %q", mounted)
			}
		})
	}
}

// expectRefusals checks that every call for a mounted volume fails.
func expectRefusals(n *node.Node, t *testing.T, p node.Pod, request *csi.NodePublishVolumeRequest) {
	t.Helper()
	_, err := n.NodePublishVolume(t.Context(), request)
	refused(t, "publish again", err)
	_, err = n.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: p.VolumeID(), VolumePath: n.Target(p)})
	refused(t, "stats", err)
	_, err = n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: p.VolumeID(), VolumePublishPath: n.Target(p)})
	refused(t, "health", err)
	refused(t, "unpublish", n.TryUnpublish(p))
}
