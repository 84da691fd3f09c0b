package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// startUnready starts two replicas that cannot become ready, after break has changed the
// directory of each.
func (r *authorities) startUnready(breakIt func(directory string)) {
	r.t.Helper()
	for i := range 2 {
		p := r.prepare(fmt.Sprintf("127.0.0.%d", i+1), "")
		breakIt(filepath.Dir(p.config))
		r.replicas = append(r.replicas, p)
		r.start(i)
	}
	r.t.Cleanup(func() {
		for i := range r.replicas {
			r.stop(i)
			if r.t.Failed() {
				r.t.Logf("the log of replica %d:\n%s", i, r.replicas[i].logs)
			}
		}
	})
}

// No replica of the registration authority is ready, from the start. Its pods' error,
// which the kubelet makes an event, has the cause. Once the cause is removed, pods start,
// and the plugin needs no restart.
func TestCauseReachesThePod(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		breakIt func(r *authorities, ca *embeddedca.CA, directory string)
		repair  func(r *authorities, ca *embeddedca.CA, directories []string)
		says    []string
		logged  string // by the replicas
	}{
		"wrong password": {
			breakIt: func(r *authorities, _ *embeddedca.CA, directory string) {
				node.Must(r.t, os.WriteFile(filepath.Join(directory, "password"), []byte("wrong"), 0o600))
			},
			repair: func(r *authorities, ca *embeddedca.CA, directories []string) {
				_, password := ca.Provisioner()
				for _, directory := range directories {
					node.Must(r.t, os.WriteFile(filepath.Join(directory, "password"), []byte(password), 0o600))
				}
			},
			says:   []string{"CA https://", "the password does not open the key of provisioner"},
			logged: logs.CannotConnect,
		},
		"wrong fingerprint": {
			breakIt: func(r *authorities, ca *embeddedca.CA, directory string) {
				replaceIn(r.t, filepath.Join(directory, "step-csi.yaml"), ca.Fingerprint(), strings.Repeat("84a0", 16))
			},
			// The authority reads its configuration at its start.
			repair: func(r *authorities, ca *embeddedca.CA, directories []string) {
				for i, directory := range directories {
					r.stop(i)
					replaceIn(r.t, filepath.Join(directory, "step-csi.yaml"), strings.Repeat("84a0", 16), ca.Fingerprint())
					r.start(i)
				}
			},
			says:   []string{"CA https://", " has no root with the fingerprint 84a0"},
			logged: logs.CannotConnect,
		},
		"unknown provisioner": {
			breakIt: func(r *authorities, ca *embeddedca.CA, directory string) {
				provisioner, _ := ca.Provisioner()
				replaceIn(r.t, filepath.Join(directory, "step-csi.yaml"), "name: "+provisioner, "name: Unknown")
			},
			repair: func(r *authorities, ca *embeddedca.CA, directories []string) {
				provisioner, _ := ca.Provisioner()
				for i, directory := range directories {
					r.stop(i)
					replaceIn(r.t, filepath.Join(directory, "step-csi.yaml"), "name: Unknown", "name: "+provisioner)
					r.start(i)
				}
			},
			says:   []string{"CA https://", `"Unknown"`},
			logged: logs.CannotConnect,
		},
		"the CA is down": {
			breakIt: func(_ *authorities, ca *embeddedca.CA, _ string) { ca.Stop() },
			repair:  func(r *authorities, ca *embeddedca.CA, _ []string) { node.Must(r.t, ca.Resume()) },
			says:    []string{"CA https://", "connection refused"},
			logged:  logs.Waiting,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := startCA(t)
			r := newAuthorities(t, ca)
			var directories []string
			r.startUnready(func(directory string) {
				directories = append(directories, directory)
				test.breakIt(r, ca, directory)
			})
			n := r.prepareNode()
			n.Launch()
			n.WaitServing()
			p := node.Pod{Name: "web-0"}
			r.admit(p)
			var err error
			says := func() bool {
				err = n.TryPublish(p)
				if err == nil {
					t.Fatal("the pod has a certificate")
				}
				for _, words := range append(test.says, "registration authority "+r.url()+": not ready; it says (unverified): issuer default, which signs") {
					if !strings.Contains(err.Error(), words) {
						return false
					}
				}
				return true
			}
			begin := time.Now()
			node.Eventually(t, 2*time.Minute, "the cause in the pod's error", says)
			t.Logf("%s after %s: %v", name, time.Since(begin).Round(time.Millisecond), err)
			expect(t, err, codes.Unavailable, "not ready")
			if text := err.Error(); strings.Contains(text, "authority unavailable") || strings.Contains(text, "no answer in time") {
				t.Errorf("got %q", text)
			}
			for i, replica := range r.replicas {
				node.Eventually(t, 2*time.Minute, "the cause in /readyz", func() bool {
					_, body := r.get(i, "/readyz")
					return strings.Contains(body, test.says[1])
				})
				node.Eventually(t, 2*time.Minute, test.logged, func() bool { return replica.logs.Has(test.logged) })
				if replica.logs.Has("Connection failed") {
					t.Errorf("the replica's log has the handshakes of the plugin:\n%s", replica.logs)
				}
			}
			if asked := r.reviews.Asked(); asked != 0 {
				t.Errorf("the plugin sent %d tokens", asked)
			}
			test.repair(r, ca, directories)
			begin = time.Now()
			node.Eventually(t, 3*time.Minute, "a certificate", func() bool { return n.TryPublish(p) == nil })
			t.Logf("%s: a certificate %s after the repair", name, time.Since(begin).Round(time.Millisecond))
			n.Unpublish(p)
		})
	}
}

// The CA of one issuer is down when the processes start. In mode node, pods of other issuers
// get certificates. In mode ra, that CA signs the registration authority's own certificate.
// Nodes trust no other CA for it, so that pods of all issuers wait. Their errors name the
// issuer that is the cause.
func TestCauseNamesTheOwnIssuer(t *testing.T) {
	inBothModes(t, func(t *testing.T, two *twoIssuers) {
		two.main.Stop()
		two.startProcesses()
		two.WaitServing()
		p := two.pod("b-0", "other")
		if two.authority == nil {
			two.Publish(p)
			two.Unpublish(p)
			return
		}
		var err error
		node.Eventually(t, 2*time.Minute, "the cause in the pod's error", func() bool {
			err = two.TryPublish(p)
			return err != nil && strings.Contains(err.Error(), "issuer default, which signs the registration authority's own certificate: ") && strings.Contains(err.Error(), two.main.URL())
		})
		node.Must(t, two.main.Resume())
		node.Eventually(t, 3*time.Minute, "a certificate", func() bool { return two.TryPublish(p) == nil })
		two.Unpublish(p)
	})
}

// replaceIn replaces a text in a file.
func replaceIn(t testing.TB, path, old, new string) {
	t.Helper()
	text, err := os.ReadFile(path)
	node.Must(t, err)
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s has no %q", path, old)
	}
	node.Must(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(text), old, new)), 0o600))
}

// The name of the registration authority has the addresses of all replicas: of those that
// run, that stop and that are not ready yet. No publish fails while a replica stops and
// starts again.
func TestReplicasComeAndGo(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 2, "  limits: {node: {rate: 10000, burst: 10000}}\n") // not what this test is about
	n := r.newNode()
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	var published atomic.Int64
	for worker := range 3 {
		publishing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				p := node.Pod{Name: fmt.Sprintf("web-%d-%d", worker, i)}
				r.admit(p)
				if err := n.TryPublish(p); err != nil {
					t.Errorf("publish %d of worker %d: %v", i, worker, err)
					return
				}
				published.Add(1)
				if err := n.TryUnpublish(p); err != nil {
					t.Errorf("unpublish %d of worker %d: %v", i, worker, err)
					return
				}
			}
		})
	}
	for range 2 {
		for i := range r.replicas {
			before := published.Load()
			r.stop(i)
			node.Eventually(t, 2*time.Minute, "publishes without the replica", func() bool { return published.Load() > before+10 || t.Failed() })
			signed := r.replicas[i].logs.Count(logs.Signed)
			r.start(i)
			node.Eventually(t, 2*time.Minute, "a publish by the replica", func() bool { return r.replicas[i].logs.Count(logs.Signed) > signed || t.Failed() })
		}
	}
	close(stop)
	publishing.Wait()
	t.Logf("%d publishes", published.Load())
}
