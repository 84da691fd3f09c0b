package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.step.sm/crypto/minica"
	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/node"
)

// oldCommit is an older version. During an upgrade both versions are in use: the
// node plugins of one version must work with the registration authority of the
// other.
const oldCommit = "5c0c1a525a523abf1e19550898e1772ef0a3d437"

// oldBinary builds step-csi at oldCommit, once.
var oldBinary = sync.OnceValues(func() (node.Binary, error) {
	source, err := os.MkdirTemp("", "step-csi-old-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(source)
	// The tests run as root, which need not own the repository.
	archive := exec.Command("git", "-c", "safe.directory=*", "-C", "../..", "archive", "--format=tar", "--output", filepath.Join(source, "source.tar"),
		oldCommit, "go.mod", "go.sum", "cmd/step-csi", "driver", "issuer")
	if out, err := archive.CombinedOutput(); err != nil {
		return "", fmt.Errorf("commit %s: %w: %sThis test needs a git clone with the whole history: git fetch --unshallow", oldCommit, err, out)
	}
	if out, err := exec.Command("tar", "-x", "-C", source, "-f", filepath.Join(source, "source.tar")).CombinedOutput(); err != nil {
		return "", fmt.Errorf("extract commit %s: %w: %s", oldCommit, err, out)
	}
	old := filepath.Join(filepath.Dir(string(binary)), "step-csi-old")
	build := exec.Command("go", "build", "-C", source, "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", old, "./cmd/step-csi")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build step-csi of commit %s: %w: %s", oldCommit, err, out)
	}
	return node.Binary(old), nil
})

func TestVersionSkew(t *testing.T) {
	t.Parallel()
	old, err := oldBinary()
	node.Must(t, err)
	for name, versions := range map[string]struct{ plugin, authority node.Binary }{
		"old node plugin":            {old, binary},
		"old registration authority": {binary, old},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := startRealCA(t)
			r := newAuthorities(t, ca)
			r.binary = versions.authority
			r.startReplicas(1, "")
			r.refreshRoots(0, time.Second)
			n := r.prepareNode()
			n.Binary = versions.plugin
			n.RefreshRoots(time.Second)
			n.Start()

			p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web", "duration": "9s", "revoke-on-delete": "true"}}
			r.admit(p)
			n.Publish(p)
			first := read(t, n.Target(p)).leaf()
			if len(first.DNSNames) != 3 || len(first.URIs) != 1 {
				t.Errorf("names %q, %s", first.DNSNames, first.URIs)
			}
			node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) })

			checkErrorsReachThePod(t, r, n)

			last := node.Pod{Name: "last-0", Attributes: map[string]string{"service-names": "last", "revoke-on-delete": "true"}}
			r.admit(last)
			n.Publish(last)
			serial := read(t, n.Target(last)).leaf().SerialNumber.String()
			n.Unpublish(last)
			node.Eventually(t, time.Minute, "the revocation", func() bool { return strings.Contains(revoked(t, ca), serial) })

			next, err := minica.New(minica.WithName("Next"))
			node.Must(t, err)
			node.Must(t, ca.Serve(ca.PKI(), ca.Root(), next.Root))
			waitForRoots(n, p, ca.Root(), next.Root)
			n.Unpublish(p)
		})
	}
}

// checkErrorsReachThePod checks the code and the message of errors that the
// registration authority returns. The kubelet writes them into the pod's events.
func checkErrorsReachThePod(t *testing.T, r *authorities, n *node.Node) {
	t.Helper()
	p := node.Pod{Name: "denied-0", Attributes: map[string]string{"dns-names": "db.prod.svc"}}
	r.admit(p)
	expect(t, n.TryPublish(p), codes.PermissionDenied, "DNS name db.prod.svc is not allowed")

	p = node.Pod{Name: "late-0", Attributes: map[string]string{"service-names": "late"}}
	r.reviews.Set(jwt(p.ID()), statusExpired)
	expect(t, n.TryPublish(p), codes.Unavailable, "token has expired")

	r.admit(p)
	token := filepath.Join(filepath.Dir(n.Config), "token")
	r.reviews.Set(jwt("plugin-expired"), statusExpired)
	node.Must(t, os.WriteFile(token, []byte(jwt("plugin-expired")), 0o600))
	expect(t, n.TryPublish(p), codes.Unavailable, "the caller's token")
	node.Must(t, os.WriteFile(token, []byte(jwt("plugin")), 0o600))

	n.Tokens = nil
	expect(t, n.TryPublish(p), codes.Unavailable, "no valid token of the pod")
	n.Tokens = func(p node.Pod) string { return jwt(p.ID()) }
	n.Publish(p)
	n.Unpublish(p)
}

// refreshRoots restarts the replica with this interval for requesting the CA's
// roots.
func (r *authorities) refreshRoots(i int, interval time.Duration) {
	r.t.Helper()
	r.stop(i)
	path := r.replicas[i].config
	config, err := os.ReadFile(path)
	node.Must(r.t, err)
	changed := strings.Replace(string(config), "    duration:", fmt.Sprintf("    roots: {refresh: %s}\n    duration:", interval), 1)
	node.Must(r.t, os.WriteFile(path, []byte(changed), 0o600))
	r.start(i)
	r.waitReady(i)
}
