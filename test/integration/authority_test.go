package integration

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	authentication "k8s.io/api/authentication/v1"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/loopback"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/reviews"
)

// authorityHost resolves to the addresses of all replicas: see addHosts.
const authorityHost = "authority.test"

// authorities is a registration authority with one or more replicas, each in its own
// process.
type authorities struct {
	t        testing.TB
	binary   node.Binary
	reviews  *reviews.Server
	ca       rootedCA
	api      string // URL of the API server, which reviews tokens
	caURL    string
	port     string
	replicas []*replica
	attacks  atomic.Int64 // so far
}

// rootedCA is a step-ca with a known root.
type rootedCA interface {
	node.CA
	Root() *x509.Certificate
}

type replica struct {
	address string
	http    string
	config  string
	logs    *node.Log
	process *exec.Cmd
}

// plugin is the pod of the node plugin.
var plugin = issuer.Pod{Namespace: "step-ca", Name: "step-csi-1", UID: "uid-plugin", ServiceAccount: "step-csi", Node: "node-1"}

// jwt returns a token: that of the node plugin if the name begins with "plugin", and
// otherwise that of a pod of the service account shop/web.
func jwt(name string) string {
	if strings.HasPrefix(name, "plugin") {
		return reviews.Token(plugin, name)
	}
	return reviews.Token(issuer.Pod{Namespace: "shop", Name: name, UID: name, ServiceAccount: "web", Node: "node-1"}, name)
}

// startAuthority starts replicas on 127.0.0.1, 127.0.0.2 and so on. more is appended
// to the authority section of their configuration.
func startAuthority(t testing.TB, ca rootedCA, replicas int, more string) *authorities {
	t.Helper()
	r := newAuthorities(t, ca)
	r.startReplicas(replicas, more)
	return r
}

// newAuthorities creates a registration authority without replicas.
func newAuthorities(t testing.TB, ca rootedCA) *authorities {
	t.Helper()
	server, err := reviews.Start()
	node.Must(t, err)
	t.Cleanup(server.Stop)
	server.Bind(jwt("plugin"), plugin)
	return &authorities{t: t, binary: binary, reviews: server, ca: ca, api: server.URL(), caURL: ca.URL(), port: freePort(t)}
}

func (r *authorities) startReplicas(replicas int, more string) {
	r.t.Helper()
	for i := range replicas {
		r.replicas = append(r.replicas, r.prepare(fmt.Sprintf("127.0.0.%d", i+1), more))
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
	for i := range replicas {
		r.waitReady(i)
	}
}

// freePort returns a port above the kernel's ephemeral range, so that no outgoing
// connection takes it before the process listens. Each test gets other ports.
func freePort(t testing.TB) string {
	t.Helper()
	address, err := loopback.Address("")
	node.Must(t, err)
	_, port, err := net.SplitHostPort(address)
	node.Must(t, err)
	return port
}

func (r *authorities) prepare(address, more string) *replica {
	r.t.Helper()
	directory := r.t.TempDir()
	name, password := r.ca.Provisioner()
	p := &replica{address: address, http: net.JoinHostPort(address, freePort(r.t)), config: filepath.Join(directory, "step-csi.yaml"), logs: &node.Log{}}
	for file, content := range map[string]string{
		"password": password, "api.crt": string(r.reviews.RootPEM()), "token": reviews.Token(issuer.Pod{Namespace: "step-ca", Name: "ra-1", UID: "ra-1", ServiceAccount: "step-csi-ra", Node: "node-1"}, "ra"),
		"step-csi.yaml": fmt.Sprintf(`
issuers:
  default:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: password}
    duration: {default: 1h, max: 24h, min: 1s}
authority:
  names: [%s, localhost]
  plugin: step-ca/step-csi
  kubernetes: {url: %s, caFile: %[6]s/api.crt, tokenFile: %[6]s/token}
%[7]s`, r.caURL, r.ca.Fingerprint(), name, authorityHost, r.api, directory, more),
	} {
		node.Must(r.t, os.WriteFile(filepath.Join(directory, file), []byte(content), 0o600))
	}
	return p
}

func (r *authorities) start(i int) {
	r.t.Helper()
	p := r.replicas[i]
	p.process = r.binary.Command("ra", "--config", p.config, "--listen", net.JoinHostPort(p.address, r.port), "--http-address", p.http)
	p.process.Dir = filepath.Dir(p.config)
	p.process.Stdout, p.process.Stderr = p.logs, p.logs
	node.Must(r.t, p.process.Start())
}

func (r *authorities) waitReady(i int) {
	r.t.Helper()
	node.Eventually(r.t, 2*time.Minute, "the registration authority is ready", func() bool {
		status, _ := r.get(i, "/readyz")
		return status == http.StatusOK
	})
}

// get sends an HTTP GET to the replica.
func (r *authorities) get(i int, path string) (status int, body string) {
	answer, err := http.Get("http://" + r.replicas[i].http + path)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	node.Must(r.t, err)
	return answer.StatusCode, string(text)
}

func (r *authorities) end(i int, signal syscall.Signal) error {
	p := r.replicas[i]
	if p.process == nil {
		return nil
	}
	_ = p.process.Process.Signal(signal)
	err := p.process.Wait()
	p.process = nil
	return err
}

func (r *authorities) stop(i int) {
	if err := r.end(i, syscall.SIGTERM); err != nil {
		r.t.Errorf("replica %d: %v", i, err)
	}
}

func (r *authorities) url() string { return "https://" + net.JoinHostPort(authorityHost, r.port) }

// newNode starts a node whose plugin uses the registration authority.
func (r *authorities) newNode() *node.Node {
	r.t.Helper()
	n := r.prepareNode()
	n.Start()
	return n
}

func (r *authorities) prepareNode() *node.Node {
	r.t.Helper()
	n := node.New(r.t, binary, r.ca)
	directory := filepath.Dir(n.Config)
	node.Must(r.t, os.Remove(filepath.Join(directory, "password")))
	node.Must(r.t, os.WriteFile(filepath.Join(directory, "token"), []byte(jwt("plugin")), 0o600))
	node.Must(r.t, os.WriteFile(n.Config, fmt.Appendf(nil, `
issuers:
  default:
    url: %s
    fingerprint: %s
    provisioner: {type: ra, tokenFile: token}
    duration: {default: 1h, max: 24h, min: 1s}
`, r.url(), r.ca.Fingerprint()), 0o600))
	n.Tokens = func(p node.Pod) string { return jwt(p.ID()) }
	return n
}

// admit registers the pod's token with the API server.
func (r *authorities) admit(p node.Pod) {
	r.reviews.Bind(jwt(p.ID()), issuer.Pod{Namespace: "shop", Name: p.Name, UID: p.ID(), ServiceAccount: "web", Node: "node-1"})
}

func TestAuthoritySigns(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	n := r.newNode()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"service-names": "web", "duration": "12s"}}
	r.admit(p)
	n.Publish(p)
	first := read(t, n.Target(p)).leaf()
	if len(first.DNSNames) != 3 || len(first.URIs) != 1 {
		t.Errorf("names %q, %s", first.DNSNames, first.URIs)
	}
	node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) })
	if log := r.replicas[0].logs; !log.Has(logs.Signed+` issuer="default" node="node-1"`) ||
		!log.Has(`serial="`+first.SerialNumber.String()+`"`) || !log.Has(`pod="shop/web-0"`) {
		t.Errorf("the audit log:\n%s", log)
	}
	if _, metrics := r.get(0, "/metrics"); !strings.Contains(metrics, `step_csi_ra_requests_total{code="OK",issuer="default"}`) ||
		!strings.Contains(metrics, "step_csi_ra_certificate_expiration_timestamp_seconds 1") {
		t.Errorf("metrics:\n%s", metrics)
	}
	n.Unpublish(p)
	for what, log := range map[string]*node.Log{"plugin": n.Logs, "authority": r.replicas[0].logs} {
		if log.Has(jwt(p.ID())) || log.Has(jwt("plugin")) {
			t.Errorf("the log of the %s contains a token:\n%s", what, log)
		}
	}
}

// A denied pod gets the reason, and the audit log records the denial.
func TestAuthorityRefuses(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	n := r.newNode()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"dns-names": "db.prod.svc"}}
	r.admit(p)
	before := ca.Signs()
	expect(t, n.TryPublish(p), codes.PermissionDenied, "DNS name db.prod.svc is not allowed")
	if ca.Signs() != before || len(n.Mounts()) > 0 {
		t.Error("the CA received a request, or a volume is mounted")
	}
	node.Eventually(t, time.Minute, "the line in the audit log", func() bool {
		log := r.replicas[0].logs
		return log.Has(logs.Refused+` err="denied: DNS name db.prod.svc`) && log.Has(`code="PermissionDenied"`)
	})
}

// The CA has a name that no configuration has. The authority learns it from the CA's
// certificate.
func TestAuthorityReservesTheCAsOtherNames(t *testing.T) {
	t.Parallel()
	ca, err := embeddedca.Start(embeddedca.Config{Host: "pki.shop.svc"})
	node.Must(t, err)
	t.Cleanup(ca.Stop)
	r := startAuthority(t, ca, 1, "")
	n := r.newNode()
	before := ca.Signs() // the authority's own certificate
	for _, attributes := range []map[string]string{{"service-names": "pki"}, {"dns-names": "*.shop.svc"}, {"dns-names": "pki.shop.svc.cluster.local"}} {
		p := node.Pod{Name: "web-0", Attributes: attributes}
		r.admit(p)
		expect(t, n.TryPublish(p), codes.PermissionDenied, "reserved")
	}
	if after := ca.Signs(); after != before {
		t.Errorf("the CA received %d signing requests", after-before)
	}
	p := node.Pod{Name: "web-1", Attributes: map[string]string{"service-names": "web"}}
	r.admit(p)
	n.Publish(p)
	n.Unpublish(p)
}

// The plugin uses both replicas. When one is killed or stopped, publishes still
// succeed.
func TestAuthorityReplicas(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 2, "")
	n := r.newNode()
	publish := func(from, to int) {
		t.Helper()
		var wg sync.WaitGroup
		for i := from; i < to; i++ {
			p := node.Pod{Name: fmt.Sprintf("web-%d", i)}
			r.admit(p)
			n.MustRequest(p)
			wg.Go(func() {
				if err := n.TryPublish(p); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	signed := func(i int) int { return r.replicas[i].logs.Count(logs.Signed) }
	// The plugin is ready with the first connection. It may not have the second one yet.
	pods := 0
	for ; pods < 100 && (signed(0) == 0 || signed(1) == 0); pods++ {
		publish(pods, pods+1)
	}
	before := []int{signed(0), signed(1)}
	publish(pods, pods+20)
	for i := range r.replicas {
		node.Eventually(t, time.Minute, fmt.Sprintf("replica %d has signed a quarter of 20 certificates", i), func() bool { return signed(i) >= before[i]+5 })
	}
	_ = r.end(0, syscall.SIGKILL)
	publish(pods+20, pods+30)
	r.start(0)
	r.waitReady(0)
	r.stop(1)
	publish(pods+30, pods+40)
	for i := range pods + 40 {
		n.Unpublish(node.Pod{Name: fmt.Sprintf("web-%d", i)})
	}
}

// A plugin without a token of the pod waits for the kubelet's next call.
func TestRenewalWaitsForAToken(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	n := r.newNode()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "10s"}}
	r.admit(p)
	n.Publish(p)
	first := read(t, n.Target(p)).leaf()
	n.Stop()
	n.Start()
	tokens := n.Tokens
	n.Tokens = nil
	n.Publish(p) // a republish without a token
	node.Eventually(t, time.Minute, "the renewal waits for a token", func() bool {
		answer, err := n.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: p.VolumeID(), VolumePublishPath: n.Target(p)})
		node.Must(t, err)
		s := answer.GetVolumeHealth().GetHealthStatuses()
		return len(s) == 1 && strings.Contains(s[0].GetMessage(), "no valid token of the pod")
	})
	n.Tokens = tokens
	n.Publish(p) // the kubelet's republish brings a token
	node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) })
	n.Unpublish(p)
}

// The API server rejects the token that the plugin has. The plugin uses the next
// token.
func TestExpiredTokenIsReplaced(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	n := r.newNode()
	p := node.Pod{Name: "web-0", Attributes: map[string]string{"duration": "9s"}}
	r.admit(p)
	n.Publish(p)
	first := read(t, n.Target(p)).leaf()
	r.reviews.Set(jwt(p.ID()), statusExpired)
	node.Eventually(t, time.Minute, "a rejected renewal", func() bool { return n.Logs.Has("token has expired") })
	n.Tokens = func(p node.Pod) string { return jwt("fresh-" + p.ID()) }
	r.reviews.Bind(n.Tokens(p), issuer.Pod{Namespace: "shop", Name: p.Name, UID: p.ID(), ServiceAccount: "web", Node: "node-1"})
	n.Publish(p)
	node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) })
	n.Unpublish(p)
}

func TestPublishWithoutAToken(t *testing.T) {
	t.Parallel()
	r := startAuthority(t, startCA(t), 1, "")
	n := r.newNode()
	n.Tokens = nil
	p := node.Pod{Name: "web-0"}
	expect(t, n.TryPublish(p), codes.Unavailable, "tokenRequests")
}

// The plugin sends no token to a registration authority of another CA.
func TestForeignAuthorityIsNotTrusted(t *testing.T) {
	t.Parallel()
	ca, other := startCA(t), startCA(t)
	r := startAuthority(t, ca, 1, "")
	r.ca = other // nodes get the fingerprint of this CA
	n := r.prepareNode()
	n.ChangeConfig(authorityHost, "localhost") // localhost has one address
	n.Launch()
	p := node.Pod{Name: "web-0"}
	r.admit(p)
	expect(t, n.TryPublish(p), codes.Unavailable, "fingerprint")
	if asked := r.reviews.Asked(); asked != 0 {
		t.Errorf("the plugin sent %d tokens", asked)
	}
}

// The plugin sends no token to a server whose certificate has another name.
func TestAuthorityWithAnotherName(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	n := r.prepareNode()
	n.ChangeConfig(authorityHost, "127.0.0.1")
	n.Launch()
	p := node.Pod{Name: "web-0"}
	r.admit(p)
	expect(t, n.TryPublish(p), codes.Unavailable, "127.0.0.1")
	if asked := r.reviews.Asked(); asked != 0 {
		t.Errorf("the plugin sent %d tokens", asked)
	}
}

// The registration authority renews its own certificate in time.
func TestAuthorityRenewsItsOwnCertificate(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	r := startAuthority(t, ca, 1, "")
	r.stop(0)
	config, err := os.ReadFile(r.replicas[0].config)
	node.Must(t, err)
	node.Must(t, os.WriteFile(r.replicas[0].config, []byte(strings.Replace(string(config), "default: 1h", "default: 15s", 1)), 0o600))
	r.start(0)
	r.waitReady(0)
	first := r.shown(0)
	var next *x509.Certificate
	node.Eventually(t, time.Minute, "a new certificate", func() bool {
		next = r.shown(0)
		return !next.Equal(first)
	})
	if issued(next).After(first.NotAfter) {
		t.Errorf("the certificate that expired at %s was renewed at %s", first.NotAfter, issued(next))
	}
	r.waitReady(0)
	// Without the CA, it is not ready once its own certificate has expired, and says
	// why.
	ca.Stop()
	node.Eventually(t, time.Minute, "the registration authority is not ready and says why", func() bool {
		status, body := r.get(0, "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "the registration authority's own certificate expired")
	})
	node.Must(t, ca.Resume())
	r.waitReady(0)
	node.Eventually(t, time.Minute, "a certificate that is valid", func() bool { return time.Now().Before(r.shown(0).NotAfter) })
}

// shown returns the certificate that a replica serves, which may have expired on a slow
// machine.
func (r *authorities) shown(i int) *x509.Certificate {
	r.t.Helper()
	time.Sleep(200 * time.Millisecond) // the authority accepts 20 connections per second from an address
	roots := x509.NewCertPool()
	roots.AddCert(r.ca.Root())
	connection, err := tls.Dial("tcp", net.JoinHostPort(r.replicas[i].address, r.port), &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does, with another time
		VerifyConnection: func(s tls.ConnectionState) error {
			return errors.Join(s.PeerCertificates[0].VerifyHostname(authorityHost), verify(s.PeerCertificates, roots))
		},
		NextProtos: []string{"h2"},
	})
	node.Must(r.t, err)
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0]
}

var statusExpired = authentication.TokenReviewStatus{Error: "[invalid bearer token, service account token has expired]"}
