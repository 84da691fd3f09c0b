package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// A release with another driver name has left a volume mounted. The plugin reports it and
// counts it as failing, with its namespace and expiry, until a process serves the other
// name. Mounts of other programs are none of its business.
func TestVolumesOfAnotherDriverName(t *testing.T) {
	t.Parallel()
	n := newNode(t, startCA(t))
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "1h"}}
	n.Publish(p)
	t.Cleanup(func() { _ = syscall.Unmount(n.Target(p), syscall.MNT_DETACH) })
	foreign := n.Target(node.Pod{Name: "db-0"})
	node.Must(t, os.MkdirAll(foreign, 0o755))
	node.Must(t, syscall.Mount("secrets-store.csi.example", foreign, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = syscall.Unmount(foreign, syscall.MNT_DETACH) })

	n.Stop()

	second := &node.Node{Kubelet: node.NewKubelet(t, n.KubeletDir), Binary: n.Binary, Config: filepath.Join(filepath.Dir(n.Config), "second.yaml"), Logs: &node.Log{}}
	config, err := os.ReadFile(n.Config)
	node.Must(t, err)
	node.Must(t, os.WriteFile(second.Config, append(config, "driverName: tls.example.com\n"...), 0o600))
	second.Flags = []string{"--http-address", "127.0.0.1:0"}
	second.Launch()
	t.Cleanup(second.Kill)
	address := health(t, second)
	const count = "\nstep_csi_left_behind_volumes "
	metrics := func() string {
		_, body := get(t, address+"/metrics")
		return body
	}
	node.Eventually(t, patience, "the second plugin reports the volume", func() bool {
		return second.Logs.Count(logs.LeftBehind, `driver="csi.step-ca.io"`, "count=1") == 1
	})
	node.Eventually(t, patience, "the metrics have the volume", func() bool {
		body := metrics()
		for _, want := range []string{
			count + "1\n",
			"\n" + `step_csi_volumes{issuer="default",namespace="shop"} 1`,
			"\n" + `step_csi_volumes_unmanaged{issuer="default",namespace="shop"} 1`,
			"\n" + `step_csi_volumes_backoff{issuer="default",namespace="shop"} 1`,
			"\n" + `step_csi_volumes_expiring{issuer="default",namespace="shop"} 0`,
		} {
			if !strings.Contains(body, want) {
				return false
			}
		}
		return strings.Contains(body, "\n"+`step_csi_volumes_earliest_expiration_timestamp_seconds{issuer="default",namespace="shop"} 1`)
	})
	if _, body := get(t, address+"/readyz"); !strings.Contains(body, `driver "csi.step-ca.io": warning: 1 mounted volumes are not renewed`) {
		t.Errorf("/readyz: %s", body)
	}
	node.Eventually(t, 2*patience, "the log says that it is not renewed", func() bool {
		return second.Logs.Count(logs.RenewalFailed, `no process on this node serves the driver \"csi.step-ca.io\"`, `pod="shop/web-0"`) == 1
	})

	// A process of the other name adopts the volume.
	n.Start()
	n.Republish()
	node.Eventually(t, 2*patience, "the volume is no longer left behind", func() bool { return strings.Contains(metrics(), count+"0\n") })
	n.Unpublish(p)
}
