package integration

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// A volume with trust only follows a rotation of the CA's roots and the additional roots, also
// over a restart of the plugin, before the kubelet publishes it again. It needs no token of
// its pod, and no certificate is signed for it. Its directory is one by which OpenSSL verifies.
func TestTrustOnly(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"node", "ra"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			ca := startRealCA(t)
			old := ca.PKI()
			next, err := minica.New(minica.WithName("Next"))
			node.Must(t, err)
			var n *node.Node
			var r *authorities
			if mode == "ra" {
				r = newAuthorities(t, ca)
				r.startReplicas(1, "")
				r.refreshRoots(0, time.Second)
				n = r.prepareNode()
				n.Tokens = nil
			} else {
				n = node.New(t, binary, ca)
			}
			a, b := otherRoot(t, "A"), otherRoot(t, "B")
			additional := filepath.Join(filepath.Dir(n.Config), "additional.crt")
			putRoots(t, additional, a)
			n.ChangeConfig("    duration:", "    roots: {refresh: 1s}\n    additionalRootsFile: additional.crt\n    duration:")
			n.Start()
			p := node.Pod{Name: "client-0", Attributes: map[string]string{"trust-only": "true", "ca-directory": "certs"}}
			n.Publish(p)
			waitForRoots(n, p, old.Root, a)
			if names, err := filepath.Glob(n.Target(p) + "/[^.]*"); err != nil || len(names) != 2 {
				t.Errorf("the files are %q, %v", names, err)
			}
			expectVerified(t, n, p, old.Intermediate, true)
			expectVerified(t, n, p, next.Intermediate, false)

			t.Log("both roots are published, then the CA signs under the new one")
			node.Must(t, ca.Serve(old, old.Root, next.Root))
			waitForRoots(n, p, old.Root, next.Root, a)
			expectVerified(t, n, p, next.Intermediate, true)
			node.Must(t, ca.Serve(next, old.Root, next.Root))

			t.Log("the plugin restarts, and the kubelet does not publish the volume")
			n.Kill()
			putRoots(t, additional, a, b)
			n.Start()
			waitForRoots(n, p, old.Root, next.Root, a, b)
			n.Republish()
			node.Must(t, ca.Serve(next, next.Root))
			waitForRoots(n, p, next.Root, a, b)
			expectVerified(t, n, p, old.Intermediate, false)

			t.Log("the CA is down, and the file of additional roots changes, first to a broken one")
			ca.Stop()
			node.Must(t, os.WriteFile(additional, []byte("-----BEGIN"), 0o600))
			node.Eventually(t, time.Minute, "the error in the log", func() bool { return n.Logs.Has("Cannot read the additional roots; the known ones stay in use") })
			putRoots(t, additional, b)
			waitForRoots(n, p, next.Root, b)
			if health, err := n.Health(p); err != nil || len(health) > 0 {
				t.Errorf("health: %v, %v", health, err)
			}
			if out, err := binary.Command("verify", "--trust-only", "--ca-directory=certs", n.Target(p)).CombinedOutput(); err != nil {
				t.Errorf("verify: %v\n%s", err, out)
			}
			n.Unpublish(p)
			n.Stop()
			n.ExpectNothingLeft()
			if r != nil && r.replicas[0].logs.Has(logs.Signed) || n.Logs.Has("Certificate issued") {
				t.Error("something was signed")
			}
		})
	}
}

// A publish waits for the first roots, and fails with the reason if there are none.
func TestTrustOnlyWaitsForTheCA(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	ca.Stop()
	n := node.New(t, binary, ca)
	n.Launch()
	n.WaitServing()
	p := node.Pod{Name: "client-0", Attributes: map[string]string{"trust-only": "true"}}
	err := n.TryPublish(p)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "wait for the roots of the CA: ") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("while the CA is down: %v", err)
	}
	n.ExpectGone(p)
	node.Must(t, ca.Resume())
	node.Eventually(t, 2*time.Minute, "the publish succeeds", func() bool { return n.TryPublish(p) == nil })
	waitForRoots(n, p, ca.Root())
	n.Unpublish(p)
}

func otherRoot(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	other, err := minica.New(minica.WithName(name))
	node.Must(t, err)
	return other.Root
}

// putRoots replaces the file as the kubelet does, by a rename.
func putRoots(t *testing.T, path string, roots ...*x509.Certificate) {
	t.Helper()
	var data []byte
	for _, root := range roots {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
	node.Must(t, os.WriteFile(path+".new", data, 0o600))
	node.Must(t, os.Rename(path+".new", path))
}

// expectVerified has OpenSSL verify the certificate by the pod's directory of roots.
func expectVerified(t *testing.T, n *node.Node, p node.Pod, c *x509.Certificate, want bool) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "certificate.pem")
	putRoots(t, file, c)
	out, err := exec.Command("openssl", "verify", "-no-CAfile", "-no-CAstore", "-CApath", filepath.Join(n.Target(p), "certs"), file).CombinedOutput()
	if (err == nil) != want {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
}
