package integration

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// Something hides the path of a volume for a while: its renewals stop, an alert can
// fire, and no republish is an error that would cost the pod its volume. At the first
// republish after that, the volume is managed again.
func TestHiddenVolumeIsAdoptedAgain(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	address := "127.0.0.1:" + freePort(t)
	n.Flags = []string{"--http-address", address}
	n.Start()
	unmanaged := func(count string) func() bool {
		return func() bool {
			_, body := get(t, "http://"+address+"/metrics")
			return strings.Contains(body, `step_csi_volumes_unmanaged{issuer="default"} `+count+"\n")
		}
	}
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "6s"}}
	n.Publish(p)
	node.Must(t, syscall.Mount("foreign", n.Target(p), "tmpfs", 0, ""))
	node.Eventually(t, 20*time.Second, "its renewals stop", func() bool { return n.Logs.Has(logs.RenewalsStopped) })
	node.Eventually(t, 5*time.Second, "it is counted", unmanaged("1"))
	expect(t, n.TryPublish(p), codes.Unavailable, "something else is mounted there")
	node.Must(t, syscall.Unmount(n.Target(p), 0))
	renewed := n.Logs.Count(logs.Renewed)
	n.Publish(p)
	node.Eventually(t, 20*time.Second, "it is renewed again", func() bool { return n.Logs.Count(logs.Renewed) > renewed+1 })
	node.Eventually(t, 5*time.Second, "it is no longer counted", unmanaged("0"))
	read(t, n.Target(p))
	n.Unpublish(p)
}

// A volume that a starting process finds in the mount table but cannot read is counted
// until the kubelet publishes it.
func TestVolumeThatCannotBeAdoptedIsCounted(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	address := "127.0.0.1:" + freePort(t)
	n.Flags = []string{"--http-address", address}
	p := node.Pod{Name: "web-0"}
	n.Publish(p)
	n.Stop()
	parent := filepath.Dir(n.Target(p))
	node.Must(t, syscall.Mount("foreign", parent, "tmpfs", 0, ""))
	node.Must(t, syscall.Mkdir(n.Target(p), 0o755))
	n.Start()
	if _, body := get(t, "http://"+address+"/metrics"); !strings.Contains(body, `step_csi_volumes_unmanaged{issuer=""} 1`) || !n.Logs.Has(logs.CannotAdopt) {
		t.Error("it is not counted")
	}
	node.Must(t, syscall.Unmount(parent, syscall.MNT_DETACH))
	n.Publish(p)
	if trouble, err := n.Health(p); err != nil || len(trouble) > 0 || n.Logs.Has(logs.Renewed) {
		t.Errorf("not adopted as it is: %v, %v", trouble, err)
	}
	if _, body := get(t, "http://"+address+"/metrics"); strings.Contains(body, `step_csi_volumes_unmanaged{issuer=""}`) {
		t.Error("it is still counted")
	}
	n.Unpublish(p)
}
