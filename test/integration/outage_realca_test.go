package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// smallDisk mounts a small file system at the path.
func smallDisk(t *testing.T, path, size string) {
	t.Helper()
	node.Must(t, os.Mkdir(path, 0o700))
	node.Must(t, syscall.Mount("tmpfs", path, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { node.Must(t, syscall.Unmount(path, syscall.MNT_DETACH)) })
}

// fill uses up the free space of the file system; free releases the space.
func fill(t *testing.T, directory string) (free func()) {
	t.Helper()
	path := filepath.Join(directory, "ballast")
	file, err := os.Create(path)
	node.Must(t, err)
	defer file.Close()
	chunk := make([]byte, 4096)
	for err == nil {
		_, err = file.Write(chunk)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	return func() { node.Must(t, os.Remove(path)) }
}

// The real step-ca is killed and restarted, and then its disk is full for longer
// than a certificate's lifetime.
func TestRealCAFails(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	database := realca.DatabaseDirectory(directory)
	smallDisk(t, database, "8m")
	ca := startRealCAIn(t, directory)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
	n.Publish(p)
	defer n.Unpublish(p)

	ca.Kill()
	before := snapshot(n, p)
	waitTroubleBefore(n, p, read(t, n.Target(p)).leaf().NotAfter, "connection refused")
	if snapshot(n, p) != before {
		t.Error("the files changed during the outage")
	}
	recoverAfter(n, p, func() { node.Must(t, ca.Resume()) })

	free := fill(t, database)
	refused := publishUntilRefused(n) // the last page of the database has free space
	expect(t, refused, codes.Unavailable, "Please see the certificate authority logs")
	before = snapshot(n, p)
	waitTrouble(n, p, "CertificateExpired", "Please see the certificate authority logs")
	if snapshot(n, p) != before {
		t.Error("the files changed while the CA's disk was full")
	}
	recoverAfter(n, p, free)
}

func publishUntilRefused(n *node.Node) (refused error) {
	n.T.Helper()
	for i := 0; refused == nil && i < 20; i++ {
		p := node.Pod{Name: fmt.Sprintf("late-%d", i)}
		if refused = n.TryPublish(p); refused == nil {
			n.Unpublish(p)
		}
	}
	return refused
}
