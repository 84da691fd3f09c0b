//go:build e2e

package e2e

import (
	"crypto/x509"
	"testing"
)

// linkedKubelet is a directory of the kubelet whose path contains a symbolic link.
const linkedKubelet = "/var/lib/data/kubelet"

// The node has a power failure, and restarts with another directory of the kubelet. The
// pods' events name the value to change. With this value, the pods restart with
// certificates, and so they do after another power failure.
func nodeRestart(t *testing.T) {
	namespace(t, "power", "baseline")
	p := pod{namespace: "power", name: "comes-back", attributes: short()}
	p.start(t)
	leaf := p.files(t)
	powerFailure(t, "--kubelet-dir", linkedKubelet)
	p.waitEvent(t, patience, "kubeletDir", linkedKubelet)
	// The restart has ended all pods: no volume is left in the directory before.
	must(t, installPlugin("--set", "kubeletDir="+linkedKubelet+",allowDriverChange=true"))
	leaf = comesBack(t, p, leaf)

	powerFailure(t)
	must(t, installPlugin("--set", "allowDriverChange=true"))
	comesBack(t, p, leaf)
}

// powerFailure stops the node without warning, and starts it again.
func powerFailure(t *testing.T, args ...string) {
	t.Helper()
	if _, err := tool("stop"); err != nil {
		t.Fatal(err)
	}
	must(t, startCluster(args...))
}

func comesBack(t *testing.T, p pod, old *x509.Certificate) *x509.Certificate {
	t.Helper()
	leaf := p.waitRotation(t, old, patience)
	p.waitReady(t)
	waitPlugin(t)
	fresh := pod{namespace: p.namespace, name: "fresh"}
	fresh.start(t)
	fresh.files(t)
	kubectl(t, "-n", fresh.namespace, "delete", "pod", fresh.name, "--now")
	return leaf
}
