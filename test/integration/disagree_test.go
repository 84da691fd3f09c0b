package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.step.sm/crypto/minica"
	"go.step.sm/crypto/pemutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
	raserver "github.com/flexstack/step-csi/issuer/ra/server"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/issuer/trust"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
)

// rootsAnswer is what a CA answers about its roots.
type rootsAnswer struct {
	mu        sync.Mutex
	own       []*x509.Certificate // instead of the CA's own; nil means these
	federated []*x509.Certificate // likewise
	lost      string              // clients that use this host name get no answer
	asked     map[string]int      // answers, by host name
}

func interceptRoots(ca *embeddedca.CA) *rootsAnswer {
	a := &rootsAnswer{asked: map[string]int{}}
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.Host)
			own, federated := strings.HasSuffix(r.URL.Path, "/roots"), strings.HasSuffix(r.URL.Path, "/federation")
			a.mu.Lock()
			defer a.mu.Unlock()
			switch {
			case own && a.lost == host:
				http.Error(w, `{"status":503,"message":"no way to the CA"}`, http.StatusServiceUnavailable)
			case own && a.own != nil:
				writeRoots(w, a.own)
			case federated && a.federated != nil:
				writeRoots(w, a.federated)
			default:
				next.ServeHTTP(w, r)
			}
			if own {
				a.asked[host]++
			}
		})
	})
	return a
}

func writeRoots(w http.ResponseWriter, roots []*x509.Certificate) {
	var answer struct {
		Certificates []string `json:"crts"`
	}
	for _, root := range roots {
		answer.Certificates = append(answer.Certificates, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})))
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(answer)
}

func (a *rootsAnswer) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

func (a *rootsAnswer) count(host string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[host]
}

// waitAsked waits until the clients with this host name have got the current answer.
func (a *rootsAnswer) waitAsked(t *testing.T, host string) {
	t.Helper()
	before := a.count(host)
	// A request may be answered at this moment, and its client may not have read it yet.
	node.Eventually(t, time.Minute, "the replica asks for roots", func() bool { return a.count(host) >= before+3 })
}

func newRoot(t *testing.T) *x509.Certificate {
	t.Helper()
	other, err := minica.New(minica.WithName("Other"))
	node.Must(t, err)
	return other.Root
}

func rootsOf(n *node.Node, p node.Pod) []*x509.Certificate {
	n.T.Helper()
	roots, err := pemutil.ReadCertificateBundle(filepath.Join(n.Target(p), "ca.crt"))
	node.Must(n.T, err)
	return roots
}

// One of two replicas can no longer get the roots of the CA. It answers those from before
// the CA added a root, and later those from before the CA removed it. Nodes that have got
// the newer roots from the other replica keep them, in running pods and in new ones.
func TestRootsNeverGoBack(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	answer := interceptRoots(ca)
	own, added := ca.Root(), newRoot(t)
	r := newAuthorities(t, ca)
	r.startReplicas(1, "")
	// The second replica uses another name of the CA, so that the CA can tell them apart.
	const stale = "localhost"
	r.caURL = strings.Replace(ca.URL(), "127.0.0.1", stale, 1)
	r.replicas = append(r.replicas, r.prepare("127.0.0.2", ""))
	r.start(1)
	for i := range r.replicas {
		r.refreshRoots(i, time.Second)
	}
	n := r.prepareNode()
	n.RefreshRoots(time.Second)
	n.Start()
	p := node.Pod{Name: "running-0"}
	r.admit(p)
	n.Publish(p)
	waitForRoots(n, p, own)

	// change changes the CA's roots some seconds after the second replica got them last.
	change := func(roots ...*x509.Certificate) {
		t.Helper()
		answer.set(func() { answer.lost = stale })
		answer.waitAsked(t, "127.0.0.1")
		answer.set(func() { answer.own = roots })
	}
	// checkOnlyStale leaves only the stale replica.
	checkOnlyStale := func(late node.Pod, want ...*x509.Certificate) {
		t.Helper()
		r.stop(0)
		r.admit(late)
		n.Publish(late) // the stale replica signs, and answers its roots
		for range 5 {
			for _, pod := range []node.Pod{p, late} {
				if got := rootsOf(n, pod); len(got) != len(want) || !trust.Same(got, want) {
					t.Fatalf("%s has %d roots, want the %d newest", pod.Name, len(got), len(want))
				}
			}
			time.Sleep(time.Second) // the node asks for roots
		}
		n.Unpublish(late)
		const rejected = "but the roots changed at"
		before := n.Logs.Count(rejected)
		n.Kill()
		n.Launch()
		node.Eventually(t, time.Minute, "the next process rejects the older roots", func() bool { return n.Logs.Count(rejected) > before })
		r.start(0)
		r.waitReady(0)
		n.Kill()
		n.Start()
		if got := rootsOf(n, p); len(got) != len(want) || !trust.Same(got, want) {
			t.Fatalf("%d roots after a restart, want the %d newest", len(got), len(want))
		}
	}

	change(own, added)
	waitForRoots(n, p, own, added)
	checkOnlyStale(node.Pod{Name: "late-0"}, own, added)

	answer.set(func() { answer.lost = "" })
	answer.waitAsked(t, stale)
	change(own)
	waitForRoots(n, p, own)
	checkOnlyStale(node.Pod{Name: "late-1"}, own)

	// The replica that was stale works again.
	answer.set(func() { answer.lost, answer.own = "", []*x509.Certificate{own, added} })
	r.stop(0)
	waitForRoots(n, p, own, added)
	n.Unpublish(p)
}

// agedSigner answers roots that it has got from the CA this long ago.
type agedSigner struct {
	issuer.Signer
	age atomic.Int64 // a time.Duration
}

func (s *agedSigner) Roots(ctx context.Context) (issuer.Roots, error) {
	roots, err := s.Signer.Roots(ctx)
	roots.Asked = time.Now().Add(-time.Duration(s.age.Load()))
	return roots, err
}

func (s *agedSigner) RefreshRoots(ctx context.Context) (issuer.Roots, error) { return s.Roots(ctx) }

// onePlugin is an API server that knows only the node plugin.
type onePlugin struct{}

func (onePlugin) Review(context.Context, issuer.Token) (issuer.Pod, error) { return plugin, nil }

// startServer serves a replica in the test's process.
func startServer(t *testing.T, ca *embeddedca.CA, address string) *agedSigner {
	t.Helper()
	name, password := ca.Provisioner()
	direct, err := stepca.New(stepca.Config{
		URL: ca.URL(), Fingerprint: ca.Fingerprint(), Provisioner: name,
		Password: func() ([]byte, error) { return []byte(password), nil },
	})
	node.Must(t, err)
	signer := &agedSigner{Signer: direct}
	lifetimes := issuer.Lifetimes{Default: time.Hour, Min: time.Minute, Max: time.Hour}
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }, Lifetimes: lifetimes})
	node.Must(t, err)
	s, err := raserver.New(raserver.Config{
		Issuers:  map[string]raserver.Issuer{"default": {Issuer: i, RootsRefresh: 30 * time.Second}},
		Serving:  raserver.Serving{Signer: direct, Names: []names.DNSName{names.Must(names.ParseDNSName(authorityHost))}, Lifetimes: lifetimes},
		Plugin:   raserver.ServiceAccount{Namespace: plugin.Namespace, Name: plugin.ServiceAccount},
		Reviewer: onePlugin{}, Metrics: prometheus.NewRegistry(),
	})
	node.Must(t, err)
	listener, err := loopback.ListenAgain(address)
	node.Must(t, err)
	ctx, stop := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		direct.Close()
	})
	node.Eventually(t, time.Minute, "the replica is ready", func() bool { _, err := s.Ready(); return err == nil })
	return signer
}

// A replica whose CA has not answered roots for minutes answers UNAVAILABLE, and the node
// plugin asks another replica in the same call.
func TestReplicaWithOldRootsIsNotAsked(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	port := freePort(t)
	fresh, stale := startServer(t, ca, "127.0.0.1:"+port), startServer(t, ca, "127.0.0.2:"+port)
	client := func() *ra.Signer {
		s, err := ra.New(ra.Config{
			URL: (&url.URL{Scheme: "https", Host: net.JoinHostPort(authorityHost, port)}).String(), Fingerprint: ca.Fingerprint(),
			Issuer: "default", Token: func() ([]byte, error) { return []byte(jwt("plugin")), nil },
		})
		node.Must(t, err)
		t.Cleanup(s.Close)
		return s
	}
	stale.age.Store(int64(151 * time.Second)) // five intervals of 30 s, and a second
	_, err := connectTo(t, ca, "127.0.0.2:"+port).Roots(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+jwt("plugin")), &rapb.RootsRequest{Issuer: "default"})
	if status.Code(err) != codes.Unavailable || !regexp.MustCompile("the CA answered its roots to this replica 2m[345].s ago").MatchString(err.Error()) {
		t.Errorf("the stale replica: %v", err)
	}
	for range 10 {
		s := client()
		// On a slow machine, the connection to the other replica may come too late for the
		// retries of one call.
		node.Eventually(t, time.Minute, "an answer", func() bool {
			roots, err := s.RefreshRoots(t.Context())
			if age := time.Since(roots.Asked); err == nil && age > time.Minute {
				t.Errorf("the roots of the stale replica, from %s ago", age)
			}
			return err == nil
		})
	}
	fresh.age.Store(int64(151 * time.Second))
	if _, err := client().RefreshRoots(t.Context()); issuer.OutcomeOf(err) != issuer.Unavailable {
		t.Errorf("both replicas are stale: %v", err)
	}
}

// connectTo connects to one replica.
func connectTo(t *testing.T, ca *embeddedca.CA, address string) rapb.RegistrationAuthorityClient {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca.Root())
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: authorityHost})))
	node.Must(t, err)
	t.Cleanup(func() { connection.Close() })
	return rapb.NewRegistrationAuthorityClient(connection)
}

// The CA is hostile, or in the hands of an attacker: it answers additional roots,
// federated roots, and later none of the configured ones. With roots.pinned, pods never
// get other roots than the configured ones, in both modes.
func TestPinnedRoots(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T, ca *embeddedca.CA) *node.Node{
		"mode node": func(t *testing.T, ca *embeddedca.CA) *node.Node {
			n := node.New(t, binary, ca)
			n.ChangeConfig("    duration:", "    roots: {refresh: 1s, pinned: true, federation: true}\n    duration:")
			return n
		},
		// The authority trusts what the CA answers.
		"mode ra": func(t *testing.T, ca *embeddedca.CA) *node.Node {
			r := startAuthority(t, ca, 1, "")
			r.refreshRoots(0, time.Second)
			r.admit(node.Pod{Name: "web-0"})
			r.admit(node.Pod{Name: "late-0"})
			n := r.prepareNode()
			n.ChangeConfig("    duration:", "    roots: {refresh: 1s, pinned: true}\n    duration:")
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := startCA(t)
			answer := interceptRoots(ca)
			foreign := newRoot(t)
			n := start(t, ca)
			n.Start()
			p, late := node.Pod{Name: "web-0"}, node.Pod{Name: "late-0"}
			n.Publish(p)
			answer.set(func() {
				answer.own = []*x509.Certificate{foreign, ca.Root()}
				answer.federated = []*x509.Certificate{foreign}
			})
			node.Eventually(t, time.Minute, "the plugin sees the additional root", func() bool {
				return n.Logs.Has("Ignoring roots of the CA that the configuration does not name")
			})
			n.Publish(late)
			for _, pod := range []node.Pod{p, late} {
				waitForRoots(n, pod, ca.Root())
			}
			n.Unpublish(late)

			before := snapshot(n, p)
			answer.set(func() { answer.own = []*x509.Certificate{foreign} })
			node.Eventually(t, time.Minute, "the plugin reports the roots", func() bool { return n.Logs.Has("none of the CA's 1 roots is in fingerprint or caBundleFile") })
			if after := snapshot(n, p); after != before {
				t.Error("the files of the pod changed")
			}

			answer.set(func() { answer.own = nil })
			node.Eventually(t, time.Minute, "a publish", func() bool { return n.TryPublish(late) == nil })
			n.Unpublish(late)
			n.Unpublish(p)
		})
	}
}
