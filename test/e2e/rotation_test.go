//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// rootRotation walks through docs/root-rotation.md, and back. A pod that reads
// its files all the time never misses one, and is never restarted.
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
		// The authority asks the CA every 30 s.
		eventually(t, 90*time.Second, func() error {
			out, err := p.exec("cat", "/etc/tls/ca.crt")
			if got := strings.Count(out, "BEGIN CERTIFICATE"); err == nil && got != count {
				err = fmt.Errorf("%d roots, not %d", got, count)
			}
			return err
		})
	}
	step(1)
	step(2)
	roots(2)
	step(3)
	step(5)
	eventually(t, 90*time.Second, func() error {
		leaf = p.files(t)
		if name := leaf.Issuer.CommonName; name != "FlexStack Intermediate CA 2" {
			return fmt.Errorf("issued by %s", name)
		}
		return nil
	})
	// Whoever starts now knows both by the configuration.
	kubectl(t, "-n", identity, "rollout", "restart", "deployment/step-csi-ra", "daemonset/step-csi")
	kubectl(t, "-n", identity, "rollout", "status", "deployment/step-csi-ra", "--timeout=120s")
	waitPlugin(t)
	leaf = p.waitRotation(t, leaf, 90*time.Second)
	step(7)
	roots(1)
	p.waitRotation(t, leaf, 90*time.Second)
	late := pod{namespace: p.namespace, name: "late"}
	late.start(t)
	late.files(t)
	sawAll(t, p)
}
