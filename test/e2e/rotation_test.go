//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// rootRotation runs the steps of docs/root-rotation.md. A pod that reads its files
// continuously never misses a file, and is never restarted.
func rootRotation(t *testing.T) {
	must(t, installPlugin("--set", "issuers.default.roots.refresh=2s"))
	t.Cleanup(func() { _ = installPlugin() })
	p := witness(t, "roots")
	leaf := p.files(t)
	step := func(number int) {
		t.Helper()
		_, err := shellBlock("docs/root-rotation.md", fmt.Sprintf("**%d. ", number), func(script string) string { return script })
		must(t, err)
	}
	roots := func(count int) {
		t.Helper()
		// The authority fetches the CA's roots every 30 s.
		eventually(t, patience, func() error {
			out, err := p.exec("cat", "/etc/tls/ca.crt")
			if got := strings.Count(out, "BEGIN CERTIFICATE"); err == nil && got != count {
				err = fmt.Errorf("ca.crt has %d roots, want %d", got, count)
			}
			return err
		})
	}
	step(1)
	step(2)
	roots(2)
	step(3)
	step(5)
	eventually(t, patience, func() (err error) {
		if leaf, err = p.tryFiles(); err == nil && leaf.Issuer.CommonName != "FlexStack Intermediate CA 2" {
			err = fmt.Errorf("the certificate is still issued by %s", leaf.Issuer.CommonName)
		}
		return err
	})
	// New processes trust both roots by their configuration.
	kubectl(t, "-n", plugin, "rollout", "restart", "deployment/step-csi-ra", "daemonset/step-csi")
	kubectl(t, "-n", plugin, "rollout", "status", "deployment/step-csi-ra", "--timeout=5m")
	waitPlugin(t)
	leaf = p.waitRotation(t, leaf, patience)
	step(7)
	roots(1)
	p.waitRotation(t, leaf, patience)
	late := pod{namespace: p.namespace, name: "late"}
	late.start(t)
	late.files(t)
	sawAll(t, p)
}
