package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// An issuer was removed from the configuration while a volume uses it. The volume counts as
// failing under the issuer's name, in metrics, in the log and in its health, until the
// issuer is back.
func TestRemovedIssuerIsFailing(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := node.New(t, binary, ca)
	without, err := os.ReadFile(n.Config)
	node.Must(t, err)
	name, _ := ca.Provisioner()
	node.Must(t, appendTo(n.Config, fmt.Sprintf(`
  edge:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: password}
    duration: {default: 1h, max: 24h, min: 1s}
`, ca.URL(), ca.Fingerprint(), name)))
	with, err := os.ReadFile(n.Config)
	node.Must(t, err)
	address := withHealth(t, n)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"issuer": "edge"}}
	n.Publish(p)
	restart := func(config []byte) {
		t.Helper()
		n.Stop()
		node.Must(t, os.WriteFile(n.Config, config, 0o600))
		n.Start()
		address = health(t, n)
		n.Republish()
	}
	failing := func(want string) {
		t.Helper()
		node.Eventually(t, patience, "the metrics say failing: "+want, func() bool {
			_, body := get(t, address+"/metrics")
			for _, metric := range []string{"backoff", "overdue", "unmanaged"} {
				if !strings.Contains(body, "\nstep_csi_volumes_"+metric+`{issuer="edge",namespace="shop"} `+want+"\n") {
					return false
				}
			}
			return true
		})
	}
	failing("0")
	restart(without)
	failing("1")
	trouble, err := n.Health(p)
	if err != nil || len(trouble) != 1 || trouble[0].GetReason() != "RenewalFailing" || !strings.Contains(trouble[0].GetMessage(), `"edge" is not an issuer`) {
		t.Errorf("health %v, error %v", trouble, err)
	}
	node.Eventually(t, 2*patience, "the log says that the renewal failed", func() bool {
		return n.Logs.Count(logs.RenewalFailed, `\"edge\" is not an issuer`, `pod="shop/web-0"`, `issuer="edge"`) == 1
	})
	restart(with)
	failing("0")
	if trouble, err := n.Health(p); err != nil || len(trouble) > 0 {
		t.Errorf("the issuer is back: health %v, error %v", trouble, err)
	}
	n.Unpublish(p)
}
