package crash

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// controlGroup is a pod's control group with a memory limit. Each process of the plugin is
// in a group of its own below, as in the containers of a pod.
type controlGroup struct {
	t         *testing.T
	directory string
	version2  bool
	started   int // containers
}

// newControlGroup makes a group, which is removed when the test ends. The test needs the
// memory controller of the machine.
func newControlGroup(t *testing.T, limit int) *controlGroup {
	t.Helper()
	const root = "/sys/fs/cgroup"
	g := &controlGroup{t: t, directory: filepath.Join(root, "memory")}
	limitFile := "memory.limit_in_bytes"
	if controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		if !strings.Contains(string(controllers), "memory") {
			t.Fatalf("%s has no memory controller, which this test needs: it has %q", root, controllers)
		}
		node.Must(t, os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0))
		g.version2, g.directory, limitFile = true, root, "memory.max"
	}
	directory, err := os.MkdirTemp(g.directory, "step-csi-test-")
	if err != nil {
		t.Fatalf("make a control group, which this test needs: %v", err)
	}
	g.directory = directory
	t.Cleanup(func() { // runs after the plugin has ended
		var err error
		for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(20 * time.Millisecond) {
			_ = g.removeContainer()
			if err = os.Remove(directory); err == nil || errors.Is(err, os.ErrNotExist) {
				return
			}
		}
		t.Error(err)
	})
	node.Must(t, os.WriteFile(filepath.Join(directory, limitFile), []byte(strconv.Itoa(limit)), 0))
	if g.version2 {
		node.Must(t, os.WriteFile(filepath.Join(directory, "cgroup.subtree_control"), []byte("+memory"), 0))
	}
	return g
}

func (g *controlGroup) container() string {
	return filepath.Join(g.directory, fmt.Sprint("container-", g.started))
}

// removeContainer removes the group of the last container, once its processes have ended.
func (g *controlGroup) removeContainer() error {
	if err := os.Remove(g.container()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// start starts the plugin in a new container's group, and waits until it is ready.
func (g *controlGroup) start(n *node.Node) {
	g.t.Helper()
	node.Eventually(g.t, time.Minute, "the last container is gone", func() bool { return g.removeContainer() == nil })
	g.started++
	node.Must(g.t, os.Mkdir(g.container(), 0o755))
	plugin := n.Command()
	shell := exec.Command("/bin/sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, g.container() + "/cgroup.procs"}, plugin.Args...)...)
	shell.Dir, shell.Env, shell.Stdout, shell.Stderr = plugin.Dir, plugin.Env, plugin.Stdout, plugin.Stderr
	n.Process = shell
	node.Must(g.t, shell.Start())
	n.WaitReady()
}

func (g *controlGroup) read(file string) string {
	g.t.Helper()
	data, err := os.ReadFile(filepath.Join(g.directory, file))
	node.Must(g.t, err)
	return strings.TrimSpace(string(data))
}

// kills returns how many processes of the container were killed for lack of memory.
func (g *controlGroup) kills() string {
	g.t.Helper()
	file := filepath.Base(g.container()) + "/memory.oom_control"
	if g.version2 {
		file = filepath.Base(g.container()) + "/memory.events"
	}
	for line := range strings.Lines(g.read(file)) {
		if count, found := strings.CutPrefix(line, "oom_kill "); found {
			return strings.TrimSpace(count)
		}
	}
	g.t.Fatalf("%s does not count killed processes", file)
	return ""
}

// usage returns the memory in use, without the page cache of files.
func (g *controlGroup) usage() int {
	g.t.Helper()
	file, cache := "memory.usage_in_bytes", "total_%s_file "
	if g.version2 {
		file, cache = "memory.current", "%s_file "
	}
	usage, err := strconv.Atoi(g.read(file))
	node.Must(g.t, err)
	for line := range strings.Lines(g.read("memory.stat")) {
		for _, list := range []string{"active", "inactive"} {
			if bytes, found := strings.CutPrefix(line, fmt.Sprintf(cache, list)); found {
				cached, err := strconv.Atoi(strings.TrimSpace(bytes))
				node.Must(g.t, err)
				usage -= cached
			}
		}
	}
	return usage
}

// plain are the names of the files without further formats.
var plain = names{Certificate: "tls.crt", PrivateKey: "tls.key", CA: "ca.crt"}

// manyRoots returns roots as large as those of public CAs.
func manyRoots(t *testing.T, count int) (all []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	node.Must(t, err)
	for i := range count {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 1), Subject: pkix.Name{CommonName: fmt.Sprint("Root ", i)}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, 600)}},
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		node.Must(t, err)
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return all
}

// manyNames are the longest and most names that a volume can ask for.
func manyNames() string {
	var all []string
	for i := range 99 {
		all = append(all, fmt.Sprintf("%s-%02d.shop", strings.Repeat("n", 60), i))
	}
	return strings.Join(all, ",")
}

// The plugin refuses new volumes before its control group is full. All mounted volumes are
// renewed, twice, so that each holds two sets of files. A killed plugin starts again in
// another container of the same pod, whose group the volumes are charged to. It adopts and
// renews them, and still refuses new ones.
func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		attributes map[string]string
		roots      int // additional ones
		least      int // so many volumes fit
	}{
		"usual":      {map[string]string{"service-names": "web", "duration": "15s"}, 0, 200},
		"largest":    {map[string]string{"dns-names": manyNames(), "duration": "15s"}, 0, 200},
		"many roots": {map[string]string{"service-names": "web", "duration": "15s"}, 120, 50},
		"all formats": {map[string]string{
			"service-names": "web", "duration": "15s", "chain": "leaf", "ca-directory": "certs", "spiffe-bundle-file": "own.crt",
			"bundle-file": "bundle.pem", "certificate-der-file": "tls.crt.der", "privatekey-der-file": "tls.key.der",
			"pkcs12-file": "keystore.p12", "pkcs12-truststore-file": "truststore.p12", "jks-file": "keystore.jks", "jks-truststore-file": "truststore.jks",
		}, 0, 100},
	} {
		attributes := test.attributes
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := startCA(t)
			g := newControlGroup(t, 64<<20)
			n := node.New(t, binary, ca)
			if test.roots > 0 {
				node.Must(t, os.WriteFile(filepath.Join(filepath.Dir(n.Config), "additional.crt"), manyRoots(t, test.roots), 0o600))
				n.ChangeConfig("    duration:", "    additionalRootsFile: additional.crt\n    duration:")
			}
			g.start(n)
			process := n.Process.Process.Pid
			before := g.usage()
			pods := fill(t, n, "web", attributes)
			if len(pods) < test.least {
				t.Errorf("only %d volumes", len(pods))
			}
			full := g.usage()
			expectRenewals(t, n, pods)
			expectRenewals(t, n, pods)
			after := g.usage()
			t.Logf("%d volumes; %.1f MiB before, %.1f KiB for each volume at first, %.1f KiB after two renewals",
				len(pods), float64(before)/(1<<20), float64(full-before)/1024/float64(len(pods)), float64(after-before)/1024/float64(len(pods)))
			if n.Process.Process.Pid != process || g.kills() != "0" {
				t.Fatalf("killed: %s", g.kills())
			}
			n.Kill()
			g.start(n)
			for _, p := range pods {
				n.Publish(p) // a republish
			}
			expectRenewals(t, n, pods)
			// The new process may need less memory than the one before.
			if late := fill(t, n, "late", attributes); len(late) > len(pods)/4 {
				t.Errorf("after the restart, the plugin accepts another %d volumes", len(late))
			}
			for _, p := range pods[:len(pods)/2] {
				n.Unpublish(p)
			}
			node.Eventually(t, time.Minute, "there is room again", func() bool {
				return n.TryPublish(node.Pod{Name: "later", Attributes: attributes}) == nil
			})
			if kills := g.kills(); kills != "0" {
				t.Errorf("killed: %s", kills)
			}
			n.Stop()
		})
	}
}

// fill publishes volumes of pods with the name until the plugin refuses all of them. Like the
// kubelet, it tries again: a refusal also counts memory that the plugin frees soon, the more of
// it the slower the machine.
func fill(t *testing.T, n *node.Node, name string, attributes map[string]string) (mounted []node.Pod) {
	t.Helper()
	const settled = 3 * time.Second // without a new volume
	var mu sync.Mutex
	last := time.Now() // a new volume
	var kubelet sync.WaitGroup
	for worker := range 8 {
		kubelet.Go(func() {
			for i := 0; i < 1000; {
				p := node.Pod{Name: fmt.Sprintf("%s-%d-%d", name, worker, i), Attributes: attributes}
				err := n.TryPublish(p)
				mu.Lock()
				if err == nil {
					mounted, last, i = append(mounted, p), time.Now(), i+1
				}
				full := time.Since(last) > settled
				mu.Unlock()
				if err != nil {
					expectFull(t, err)
					if full {
						return
					}
					time.Sleep(settled / 10)
				}
			}
			t.Error("no volume was refused")
		})
	}
	kubelet.Wait()
	return mounted
}

// expectFull checks that a volume was refused for lack of memory.
func expectFull(t *testing.T, err error) {
	t.Helper()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "raise resources.limits.memory in the chart's values") {
		t.Errorf("got %v", err)
	}
}

// expectRenewals waits until every volume has a new certificate.
func expectRenewals(t *testing.T, n *node.Node, pods []node.Pod) {
	t.Helper()
	serials := map[string]string{}
	for _, p := range pods {
		leaf, err := read(n.Target(p), plain)
		node.Must(t, err)
		serials[p.Name] = leaf.SerialNumber.String()
	}
	node.Eventually(t, 5*time.Minute, "every volume is renewed", func() bool {
		for _, p := range pods {
			if serials[p.Name] == "" {
				continue
			}
			if leaf, err := read(n.Target(p), plain); err != nil || leaf.SerialNumber.String() == serials[p.Name] {
				return false
			}
			delete(serials, p.Name)
		}
		return true
	})
	if n.Logs.Has(logs.RenewalFailed) {
		t.Error("a renewal failed")
	}
}
