package integration

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.step.sm/crypto/minica"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/node"
)

// federatedCA starts a CA with three federated roots, and counts the requests for them.
func federatedCA(t *testing.T) (*embeddedca.CA, *atomic.Int64) {
	t.Helper()
	var federated []*x509.Certificate
	for range 3 {
		other, err := minica.New()
		node.Must(t, err)
		federated = append(federated, other.Root)
	}
	ca, err := embeddedca.Start(embeddedca.Config{Federated: federated})
	node.Must(t, err)
	t.Cleanup(ca.Stop)
	var asked atomic.Int64
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r)
			if strings.HasSuffix(r.URL.Path, "/federation") {
				asked.Add(1)
			}
		})
	})
	return ca, &asked
}

// order returns the federated roots as the CA answers them.
func order(t *testing.T, ca *embeddedca.CA) string {
	t.Helper()
	answer, err := caClient(ca).Get(ca.URL() + "/federation")
	node.Must(t, err)
	defer answer.Body.Close()
	var listed struct {
		Certificates []string `json:"crts"`
	}
	node.Must(t, json.NewDecoder(answer.Body).Decode(&listed))
	if len(listed.Certificates) < 3 {
		t.Fatalf("%d federated roots", len(listed.Certificates))
	}
	return strings.Join(listed.Certificates, "")
}

// shuffle restarts the CA, without any change, until it answers its roots in another order.
func shuffle(t *testing.T, ca *embeddedca.CA) {
	t.Helper()
	before := order(t, ca)
	node.Eventually(t, time.Minute, "another order of the federated roots", func() bool {
		ca.Stop()
		node.Must(t, ca.Resume())
		return order(t, ca) != before
	})
}

// filesOf returns the name of the set of files in use, and the roots in it.
func filesOf(t *testing.T, n *node.Node, p node.Pod) (set string, roots []byte) {
	t.Helper()
	set, err := os.Readlink(filepath.Join(n.Target(p), "..data"))
	node.Must(t, err)
	roots, err = os.ReadFile(filepath.Join(n.Target(p), "ca.crt"))
	node.Must(t, err)
	return set, roots
}

// step-ca answers federated roots in another order after each restart. No file changes for
// that, neither while the plugin runs nor after its restart, and every pod gets the same
// ca.crt. TestRootsInTheOrderOfAnEarlierVersion is about files of earlier versions.
func TestRootsInAnotherOrder(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T, *embeddedca.CA) (n *node.Node, admit func(node.Pod)){
		"node": func(t *testing.T, ca *embeddedca.CA) (*node.Node, func(node.Pod)) {
			n := node.New(t, binary, ca)
			n.ChangeConfig("    duration:", "    roots: {refresh: 1s, federation: true}\n    duration:")
			n.Start()
			return n, func(node.Pod) {}
		},
		"ra": func(t *testing.T, ca *embeddedca.CA) (*node.Node, func(node.Pod)) {
			r := newAuthorities(t, ca)
			r.startReplicas(1, "")
			r.refreshRoots(0, time.Second)
			r.stop(0)
			config, err := os.ReadFile(r.replicas[0].config)
			node.Must(t, err)
			node.Must(t, os.WriteFile(r.replicas[0].config, bytes.Replace(config, []byte("refresh: 1s"), []byte("refresh: 1s, federation: true"), 1), 0o600))
			r.start(0)
			r.waitReady(0)
			n := r.prepareNode()
			n.RefreshRoots(time.Second)
			n.Start()
			return n, r.admit
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca, asked := federatedCA(t)
			n, admit := start(t, ca)
			first := node.Pod{Name: "first-0"}
			admit(first)
			n.Publish(first)
			set, roots := filesOf(t, n, first)
			if got := bytes.Count(roots, []byte("BEGIN CERTIFICATE")); got != 4 {
				t.Fatalf("ca.crt has %d roots, want 4", got)
			}
			trusted := filepath.Join(n.KubeletDir, "plugins", node.Driver, "trusted-roots.json")
			unchanged := func(when string) {
				t.Helper()
				if now, content := filesOf(t, n, first); now != set || !bytes.Equal(content, roots) {
					t.Errorf("%s: the files were written again, %s instead of %s", when, now, set)
				}
			}
			shuffle(t, ca)
			from := asked.Load()
			node.Eventually(t, time.Minute, "refreshes of the roots", func() bool { return asked.Load() > from+3 })
			second := node.Pod{Name: "second-0"}
			admit(second)
			n.Publish(second)
			if _, other := filesOf(t, n, second); !bytes.Equal(other, roots) {
				t.Errorf("another pod has the roots in another order:\n%s", other)
			}
			unchanged("after a restart of the CA")
			n.Stop()
			saved, err := os.Stat(trusted)
			node.Must(t, err)

			shuffle(t, ca)
			const learned = "New CA roots"
			count := n.Logs.Count(learned)
			n.Start()
			node.Eventually(t, time.Minute, "the roots, after a restart of the plugin", func() bool { return n.Logs.Count(learned) > count })
			n.Republish()
			n.Stop() // waits for what writes into volumes
			unchanged("after a restart of the plugin")
			if now, err := os.Stat(trusted); err != nil || !os.SameFile(saved, now) {
				t.Errorf("trusted-roots.json was written again: %v", err)
			}
			if n.Logs.Has("Roots replaced in volumes") {
				t.Error("the log says that roots were replaced")
			}
			n.Start()
			n.Unpublish(first)
			n.Unpublish(second)
		})
	}
}
