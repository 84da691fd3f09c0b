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

// Another mount hides the path of a volume for a while. The plugin stops renewing
// the certificate and counts the volume as unmanaged, so that an alert can fire. The
// next republish after the path is visible again makes the plugin manage the volume
// again.
func TestHiddenVolumeIsAdoptedAgain(t *testing.T) {
	t.Parallel()
	n := node.New(t, binary, startCA(t))
	address := "127.0.0.1:" + freePort(t)
	n.Flags = []string{"--http-address", address}
	n.Start()
	unmanaged := func(count string) func() bool {
		return func() bool {
			_, body := get(t, "http://"+address+"/metrics")
			return strings.Contains(body, `step_csi_volumes_unmanaged{issuer="default",namespace="shop"} `+count+"\n")
		}
	}
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "6s"}}
	n.Publish(p)
	node.Must(t, syscall.Mount("foreign", n.Target(p), "tmpfs", 0, ""))
	node.Eventually(t, time.Minute, "the plugin stops renewing", func() bool { return n.Logs.Has(logs.RenewalsStopped) })
	node.Eventually(t, time.Minute, "the volume counts as unmanaged", unmanaged("1"))
	expect(t, n.TryPublish(p), codes.Unavailable, "something else is mounted there")
	node.Must(t, syscall.Unmount(n.Target(p), 0))
	renewed := n.Logs.Count(logs.Renewed)
	n.Publish(p)
	node.Eventually(t, time.Minute, "the plugin renews again", func() bool { return n.Logs.Count(logs.Renewed) > renewed+1 })
	node.Eventually(t, time.Minute, "the volume no longer counts as unmanaged", unmanaged("0"))
	read(t, n.Target(p))
	n.Unpublish(p)
}

// A starting plugin finds a volume in the mount table but cannot read its files. The
// volume counts as unmanaged until the kubelet publishes it again.
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
	node.Eventually(t, time.Minute, "the volume counts as unmanaged", func() bool {
		_, body := get(t, "http://"+address+"/metrics")
		return strings.Contains(body, `step_csi_volumes_unmanaged{issuer="",namespace=""} 1`) && n.Logs.Has(logs.CannotAdopt)
	})
	if trouble, err := n.Health(p); err != nil || len(trouble) != 1 || trouble[0].GetReason() != "RenewalFailing" {
		t.Errorf("the health of a volume that cannot be read: %v, error %v", trouble, err)
	}
	node.Must(t, syscall.Unmount(parent, syscall.MNT_DETACH))
	n.Publish(p)
	if trouble, err := n.Health(p); err != nil || len(trouble) > 0 || n.Logs.Has(logs.Renewed) {
		t.Errorf("the republish did not adopt the volume unchanged: health %v, error %v", trouble, err)
	}
	node.Eventually(t, time.Minute, "the volume no longer counts as unmanaged", func() bool {
		_, body := get(t, "http://"+address+"/metrics")
		return !strings.Contains(body, `step_csi_volumes_unmanaged{issuer="",`)
	})
	n.Unpublish(p)
}
