// Package bench compares publishing a volume with its lower bound: only the signing
// by the real step-ca with its database. It measures both in turn in the same run,
// so that the ratio holds on a machine whose speed varies.
package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"
	"go.step.sm/crypto/jose"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
	"github.com/flexstack/step-csi/test/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Enter()
	klog.SetOutput(io.Discard)
	klog.LogToStderr(false)
	os.Exit(m.Run())
}

// atOnce are the numbers of concurrent callers.
var atOnce = []int{1, 64}

// times are the durations of calls.
type times []time.Duration

func (t times) percentile(n int) float64 {
	slices.Sort(t)
	return float64(t[min(len(t)*n/100, len(t)-1)]) / float64(time.Millisecond)
}

// measure makes n calls of f from that many concurrent callers.
func measure(callers, n int, f func(i int)) times {
	took := make(times, n)
	next := make(chan int)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := range next {
				start := time.Now()
				f(i)
				took[i] = time.Since(start)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return took
}

// BenchmarkRawSign measures the lower bound: key, CSR, one-time token and signing,
// with step-ca's client library only.
func BenchmarkRawSign(b *testing.B) {
	raw := newRawSigner(b, startCA(b))
	for _, callers := range atOnce {
		b.Run(fmt.Sprintf("at-once=%d", callers), func(b *testing.B) {
			raw.sign(b) // connects
			b.ResetTimer()
			took := measure(callers, b.N, func(int) { raw.sign(b) })
			b.ReportMetric(took.percentile(50), "ms/median")
			b.ReportMetric(took.percentile(99), "ms/p99")
		})
	}
}

// BenchmarkPublish measures the CSI call, which returns when the volume is mounted.
// Its rounds alternate with rounds of raw signing; of-raw is the ratio of the
// medians.
func BenchmarkPublish(b *testing.B) {
	benchmarkPublish(b, func(n *inProcess) csi.NodeServer { return n.driver })
}

// BenchmarkPublishOverSocket measures the same call over gRPC on a Unix socket, as
// the kubelet makes it.
func BenchmarkPublishOverSocket(b *testing.B) {
	benchmarkPublish(b, func(n *inProcess) csi.NodeServer { return overSocket{client: n} })
}

func benchmarkPublish(b *testing.B, way func(*inProcess) csi.NodeServer) {
	authority := startCA(b)
	raw, n := newRawSigner(b, authority), startNode(b, authority)
	server := way(n)
	for _, callers := range atOnce {
		b.Run(fmt.Sprintf("at-once=%d", callers), func(b *testing.B) {
			round := 4 * callers
			requests := n.requests(round)
			var limit, took times
			for left := b.N; left > 0; left -= round {
				limit = append(limit, measure(callers, min(left, round), func(int) { raw.sign(b) })...)
				took = append(took, measure(callers, min(left, round), func(i int) {
					_, err := server.NodePublishVolume(context.Background(), requests[i])
					node.Must(b, err)
				})...)
				for _, r := range requests {
					n.unpublish(b, r)
				}
			}
			b.ReportMetric(limit.percentile(50), "ms/raw-median")
			b.ReportMetric(took.percentile(50), "ms/median")
			b.ReportMetric(took.percentile(99), "ms/p99")
			b.ReportMetric(took.percentile(50)/limit.percentile(50), "of-raw")
		})
	}
}

// overSocket calls a driver through its socket.
type overSocket struct {
	csi.UnimplementedNodeServer
	client csi.NodeClient
}

func (s overSocket) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	return s.client.NodePublishVolume(ctx, r)
}

func startCA(b *testing.B) *realca.CA {
	b.Helper()
	directory := b.TempDir()
	program, err := realca.Build(directory)
	node.Must(b, err)
	authority, err := realca.Start(program, directory)
	node.Must(b, err)
	b.Cleanup(authority.Stop)
	return authority
}

var sans = []string{"web.shop", "web.shop.svc", "web.shop.svc.cluster.local"}

// rawSigner signs with the client library only, without step-csi.
type rawSigner struct {
	client   *ca.Client
	signer   jose.Signer
	audience string
}

func newRawSigner(b *testing.B, authority *realca.CA) *rawSigner {
	b.Helper()
	ca.DisableIdentity = true
	client, err := ca.NewClient(authority.URL(), ca.WithCABundle(authority.RootPEM()))
	node.Must(b, err)
	provisioners, err := client.Provisioners()
	node.Must(b, err)
	_, encrypted, _ := provisioners.Provisioners[0].GetEncryptedKey()
	_, password := authority.Provisioner()
	plain, err := jose.Decrypt([]byte(encrypted), jose.WithPassword([]byte(password)))
	node.Must(b, err)
	key, err := jose.ParseKey(plain)
	node.Must(b, err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key.Key},
		new(jose.SignerOptions).WithType("JWT").WithHeader("kid", key.KeyID))
	node.Must(b, err)
	return &rawSigner{client: client, signer: signer, audience: authority.URL() + "/1.0/sign"}
}

func (r *rawSigner) sign(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	node.Must(b, err)
	template := &x509.CertificateRequest{DNSNames: sans}
	template.Subject.CommonName = sans[0]
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	node.Must(b, err)
	csr, err := x509.ParseCertificateRequest(der)
	node.Must(b, err)
	now, sum := time.Now(), sha256.Sum256(der)
	token, err := jose.Signed(r.signer).Claims(jose.Claims{
		ID: rand.Text(), Issuer: "admin", Subject: sans[0], Audience: jose.Audience{r.audience},
		IssuedAt: jose.NewNumericDate(now), NotBefore: jose.NewNumericDate(now), Expiry: jose.NewNumericDate(now.Add(time.Minute)),
	}).Claims(map[string]any{
		"sans": sans, "cnf": map[string]string{"x5rt#S256": base64.RawURLEncoding.EncodeToString(sum[:])},
	}).CompactSerialize()
	node.Must(b, err)
	_, err = r.client.Sign(&api.SignRequest{CsrPEM: api.NewCertificateRequest(csr), OTT: token})
	node.Must(b, err)
}

// inProcess is a node whose driver runs in this process.
type inProcess struct {
	*node.Kubelet
	driver *driver.Driver
}

func startNode(b *testing.B, authority *realca.CA) *inProcess {
	b.Helper()
	return startNodeWith(b, directIssuer(b, authority))
}

// directSigner returns a signer that calls the CA directly.
func directSigner(b *testing.B, authority *realca.CA) *stepca.Signer {
	b.Helper()
	provisioner, password := authority.Provisioner()
	signer, err := stepca.New(stepca.Config{
		URL: authority.URL(), Fingerprint: authority.Fingerprint(), Provisioner: provisioner,
		Password: func() ([]byte, error) { return []byte(password), nil },
	})
	node.Must(b, err)
	b.Cleanup(signer.Close)
	return signer
}

// directIssuer returns an issuer that calls the CA directly.
func directIssuer(b *testing.B, authority *realca.CA) *issuer.Issuer {
	b.Helper()
	return issuerWith(b, issuer.Config{Signer: directSigner(b, authority)})
}

// issuerWith returns an issuer with the default policy.
func issuerWith(b *testing.B, c issuer.Config) *issuer.Issuer {
	b.Helper()
	allow, err := policy.New(policy.Config{
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")),
	})
	node.Must(b, err)
	c.Policy = allow.Check
	i, err := issuer.New(c)
	node.Must(b, err)
	return i
}

// startNodeWith keeps the kubelet's directory in memory, so that the machine's disk
// does not affect the results.
func startNodeWith(b *testing.B, i *issuer.Issuer) *inProcess {
	b.Helper()
	// Not b.TempDir: the path of a socket has at most 107 bytes.
	directory, err := os.MkdirTemp("", "bench-")
	node.Must(b, err)
	b.Cleanup(func() { node.Must(b, os.Remove(directory)) })
	node.Must(b, syscall.Mount("kubelet", directory, "tmpfs", 0, ""))
	b.Cleanup(func() { node.Must(b, syscall.Unmount(directory, 0)) })
	node.Must(b, i.Connect(b.Context()))
	n := &inProcess{Kubelet: node.NewKubelet(b, directory)}
	n.driver, _ = n.Serve(i)
	return n
}

// requests returns the publish requests of count pods.
func (n *inProcess) requests(count int) []*csi.NodePublishVolumeRequest {
	return n.requestsWith(count, map[string]string{"service-names": "web"})
}

func (n *inProcess) requestsWith(count int, attributes map[string]string) []*csi.NodePublishVolumeRequest {
	all := make([]*csi.NodePublishVolumeRequest, count)
	for i := range all {
		all[i] = n.MustRequest(node.Pod{Name: fmt.Sprint("web-", i), Attributes: attributes})
	}
	return all
}

func (n *inProcess) unpublish(b *testing.B, r *csi.NodePublishVolumeRequest) {
	_, err := n.driver.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: r.GetVolumeId(), TargetPath: r.GetTargetPath()})
	node.Must(b, err)
}
