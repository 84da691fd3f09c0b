package integration

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/flexstack/step-csi/test/node"
)

// A pod that does not set readOnly below csi: gets the same read-only volume. A republish
// with or without readOnly changes nothing, also after a restart.
func TestWithoutReadOnly(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newNode(t, ca)
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web"}}
	publish := func(readOnly bool) {
		t.Helper()
		request := n.MustRequest(p)
		request.Readonly = readOnly
		_, err := n.NodePublishVolume(t.Context(), request)
		node.Must(t, err)
	}
	publish(false)
	first := read(t, n.Target(p)).leaf()
	if err := os.WriteFile(filepath.Join(n.Target(p), "file"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write into the volume: %v", err)
	}
	publish(false)
	publish(true)
	n.Kill()
	n.Start()
	publish(false)
	publish(true)
	if !read(t, n.Target(p)).leaf().Equal(first) || ca.Signs() != 1 {
		t.Errorf("the certificate changed, after %d signing requests", ca.Signs())
	}
	n.Unpublish(p)
}
