package integration

import (
	"crypto"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// A user of the pod owns the files, and no other user may read the key. The hardened plugin
// still does everything that it does with files that root owns.
func TestFilesOfAnotherOwner(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		group string
		gid   uint32
		mode  fs.FileMode
	}{{"", 0, 0o400}, {"2000", 2000, 0o440}} {
		t.Run("group "+test.group, func(t *testing.T) {
			t.Parallel()
			ca := startCA(t)
			n := node.New(t, binary, ca)
			n.ChangeConfig("    duration:", "    roots: {refresh: 1s, federation: true}\n    duration:")
			n.Start()
			p := node.Pod{Name: "web-0", Group: test.group, Attributes: map[string]string{"owner-uid": "1234", "reuse-private-key": "true", "bundle-file": "bundle.pem"}}
			n.Publish(p)
			expectOwner := func(when string) {
				t.Helper()
				for _, name := range []string{"tls.key", "bundle.pem"} {
					info, err := os.Stat(filepath.Join(n.Target(p), name))
					node.Must(t, err)
					if owner := info.Sys().(*syscall.Stat_t); info.Mode() != test.mode || owner.Uid != 1234 || owner.Gid != test.gid {
						t.Errorf("%s, %s has mode %v and owner %d:%d", when, name, info.Mode(), owner.Uid, owner.Gid)
					}
				}
			}
			expectOwner("at first")
			first := read(t, n.Target(p))

			// A program that watches a file sees the renewal, which reads the old key.
			w := watch(t, filepath.Join(n.Target(p), "tls.key"))
			p = p.With("renew-before", "20m")
			n.Publish(p)
			node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first.leaf()) })
			w.waitFor("WRITE tls.key")
			w.waitFor("CHMOD tls.key")
			second := read(t, n.Target(p))
			if !first.key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(second.key) {
				t.Error("the renewal did not reuse the key")
			}
			expectOwner("after a renewal")

			// The next process can read the volume, and finds it undamaged.
			n.Kill()
			n.Start()
			n.Publish(p)
			if trouble, err := n.Health(p); err != nil || len(trouble) > 0 || n.Logs.Has(logs.Damaged) {
				t.Errorf("after a restart: health %v, error %v", trouble, err)
			}

			// The roots change beside the key that the volume has.
			other, err := minica.New()
			node.Must(t, err)
			node.Must(t, ca.SetFederated(other.Root))
			waitForRoots(n, p, ca.Root(), other.Root)
			expectOwner("after new roots")
			if after := read(t, n.Target(p)); !after.leaf().Equal(second.leaf()) {
				t.Error("the restart, or the new roots, renewed the certificate")
			}
			out, err := binary.Command("verify", n.Target(p)).CombinedOutput()
			if err != nil {
				t.Errorf("verify: %v: %s", err, out)
			}
			n.Unpublish(p)
			n.ExpectGone(p)
		})
	}
}
