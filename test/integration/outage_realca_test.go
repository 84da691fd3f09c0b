package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/realca"
)

// smallDisk is a file system of a few MiB at the path.
func smallDisk(t *testing.T, path, size string) {
	t.Helper()
	must(t, os.Mkdir(path, 0o700))
	must(t, syscall.Mount("tmpfs", path, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, syscall.Unmount(path, syscall.MNT_DETACH)) })
}

// fill takes all the room that is left, and returns what gives it back.
func fill(t *testing.T, directory string) (free func()) {
	t.Helper()
	path := filepath.Join(directory, "ballast")
	file, err := os.Create(path)
	must(t, err)
	defer file.Close()
	chunk := make([]byte, 4096)
	for err == nil {
		_, err = file.Write(chunk)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	return func() { must(t, os.Remove(path)) }
}

// The real step-ca is killed and comes back, and then its disk is full for longer
// than a lifetime.
func TestRealCAFails(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	database := realca.DatabaseDirectory(directory)
	smallDisk(t, database, "8m")
	ca, err := realca.Start(directory)
	must(t, err)
	t.Cleanup(ca.Stop)
	n := newNode(t, ca)
	p := pod{name: "web-0", attributes: map[string]string{"duration": "9s"}}
	n.publish(p)
	defer n.unpublish(p)

	before := n.snapshot(p)
	ca.Kill()
	n.waitTrouble(p, "RenewalFailing", "connection refused")
	if n.snapshot(p) != before {
		t.Error("the files have changed")
	}
	n.recoverAfter(p, func() { must(t, ca.Resume()) })

	free := fill(t, database)
	refused := n.publishUntilRefused() // there is room left in the last page
	expect(t, refused, codes.Unavailable, "Please see the certificate authority logs")
	before = n.snapshot(p)
	n.waitTrouble(p, "CertificateExpired", "Please see the certificate authority logs")
	if n.snapshot(p) != before {
		t.Error("the files have changed")
	}
	n.recoverAfter(p, free)
}

func (n *node) publishUntilRefused() (refused error) {
	n.t.Helper()
	for i := 0; refused == nil && i < 20; i++ {
		p := pod{name: fmt.Sprintf("late-%d", i)}
		if refused = n.tryPublish(p); refused == nil {
			n.unpublish(p)
		}
	}
	return refused
}
