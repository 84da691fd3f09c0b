package integration

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// Everyone who may mount on the node can mount something with an empty source, or at a
// path with odd characters. The plugin starts, and finds its volumes.
func TestOddMountsDoNotKeepThePluginFromStarting(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	for _, source := range []string{"", "a b", "a\nb", "a\u00a0b"} {
		path := t.TempDir()
		node.Must(t, syscall.Mount(source, path, "tmpfs", 0, ""))
		t.Cleanup(func() { node.Must(t, syscall.Unmount(path, syscall.MNT_DETACH)) })
	}
	before := read(t, n.Target(p)).leaf()
	n.Kill()
	n.Start()
	node.Eventually(t, time.Minute, "the plugin finds the volume", func() bool { return n.Logs.Count(logs.Found, "count=1") == 1 })
	n.Publish(p)
	if mounts := n.Mounts(); !slices.Contains(mounts, n.Target(p)) {
		t.Errorf("mounted: %q", mounts)
	}
	if _, err := n.Health(p); err != nil {
		t.Error(err)
	}
	if after := read(t, n.Target(p)).leaf(); !after.Equal(before) {
		t.Error("the certificate changed")
	}
	n.Unpublish(p)
}
