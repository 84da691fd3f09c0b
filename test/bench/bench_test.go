// Package bench compares publishing a volume with the limit: the bare sign by
// the CA, the real step-ca with its database. Both are measured in turn in the
// same run, so that the ratio holds on a machine whose speed drifts.
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
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/smallstep/certificates/api"
	"github.com/smallstep/certificates/ca"
	"go.step.sm/crypto/jose"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flexstack/step-csi/test/realca"
	"github.com/flexstack/step-csi/test/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Enter()
	os.Exit(m.Run())
}

// atOnce are the numbers of callers.
var atOnce = []int{1, 64}

// times are how long calls took.
type times []time.Duration

func (t times) percentile(n int) float64 {
	slices.Sort(t)
	return float64(t[min(len(t)*n/100, len(t)-1)]) / float64(time.Millisecond)
}

// measure makes n calls of f from so many callers at once.
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

// BenchmarkRawSign is the limit: key, CSR, one-time token and sign, with the
// client library alone.
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

// BenchmarkPublish is what the kubelet calls, from the call to the answer, with
// the mount attached. Rounds of it alternate with rounds of the bare sign, which
// the ratio of the medians is to.
func BenchmarkPublish(b *testing.B) {
	authority := startCA(b)
	raw, plugin := newRawSigner(b, authority), startPlugin(b, authority)
	for _, callers := range atOnce {
		b.Run(fmt.Sprintf("at-once=%d", callers), func(b *testing.B) {
			round := 4 * callers
			requests := make([]*csi.NodePublishVolumeRequest, round)
			for i := range requests {
				requests[i] = plugin.request(b, i)
			}
			var limit, took times
			for n := b.N; n > 0; n -= round {
				limit = append(limit, measure(callers, min(n, round), func(int) { raw.sign(b) })...)
				took = append(took, measure(callers, min(n, round), func(i int) { plugin.publish(b, requests[i]) })...)
				for _, r := range requests {
					plugin.unpublish(b, r)
				}
			}
			b.ReportMetric(limit.percentile(50), "ms/raw-median")
			b.ReportMetric(took.percentile(50), "ms/median")
			b.ReportMetric(took.percentile(99), "ms/p99")
			b.ReportMetric(took.percentile(50)/limit.percentile(50), "of-raw")
		})
	}
}

func startCA(b *testing.B) *realca.CA {
	b.Helper()
	authority, err := realca.Start(b.TempDir())
	must(b, err)
	b.Cleanup(authority.Stop)
	return authority
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

var names = []string{"web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "spiffe://cluster.local/ns/shop/sa/web"}

// rawSigner signs without step-csi.
type rawSigner struct {
	client   *ca.Client
	signer   jose.Signer
	audience string
}

func newRawSigner(b *testing.B, authority *realca.CA) *rawSigner {
	b.Helper()
	ca.DisableIdentity = true
	client, err := ca.NewClient(authority.URL(), ca.WithCABundle(authority.RootPEM()))
	must(b, err)
	provisioners, err := client.Provisioners()
	must(b, err)
	_, encrypted, _ := provisioners.Provisioners[0].GetEncryptedKey()
	_, password := authority.Provisioner()
	plain, err := jose.Decrypt([]byte(encrypted), jose.WithPassword([]byte(password)))
	must(b, err)
	key, err := jose.ParseKey(plain)
	must(b, err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key.Key},
		new(jose.SignerOptions).WithType("JWT").WithHeader("kid", key.KeyID))
	must(b, err)
	return &rawSigner{client: client, signer: signer, audience: authority.URL() + "/1.0/sign"}
}

func (r *rawSigner) sign(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(b, err)
	template := &x509.CertificateRequest{DNSNames: names[:3]}
	template.Subject.CommonName = names[0]
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	must(b, err)
	csr, err := x509.ParseCertificateRequest(der)
	must(b, err)
	now, sum := time.Now(), sha256.Sum256(der)
	token, err := jose.Signed(r.signer).Claims(jose.Claims{
		ID: rand.Text(), Issuer: "admin", Subject: names[0], Audience: jose.Audience{r.audience},
		IssuedAt: jose.NewNumericDate(now), NotBefore: jose.NewNumericDate(now), Expiry: jose.NewNumericDate(now.Add(time.Minute)),
	}).Claims(map[string]any{
		"sans": names[:3], "cnf": map[string]string{"x5rt#S256": base64.RawURLEncoding.EncodeToString(sum[:])},
	}).CompactSerialize()
	must(b, err)
	_, err = r.client.Sign(&api.SignRequest{CsrPEM: api.NewCertificateRequest(csr), OTT: token})
	must(b, err)
}

// plugin is the plugin's process.
type plugin struct {
	kubeletDir string
	node       csi.NodeClient
}

func startPlugin(b *testing.B, authority *realca.CA) *plugin {
	b.Helper()
	directory := b.TempDir()
	binary, config := filepath.Join(directory, "step-csi"), filepath.Join(directory, "step-csi.yaml")
	out, err := exec.Command("go", "build", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", binary, "../../cmd/step-csi").CombinedOutput()
	if err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	must(b, os.WriteFile(filepath.Join(directory, "password"), []byte("password"), 0o600))
	must(b, os.WriteFile(config, fmt.Appendf(nil, `
issuers:
  default:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: admin, passwordFile: password}
`, authority.URL(), authority.Fingerprint()), 0o600))
	p := &plugin{kubeletDir: filepath.Join(directory, "kubelet")}
	must(b, os.MkdirAll(p.kubeletDir, 0o755))
	must(b, syscall.Mount("kubelet", p.kubeletDir, "tmpfs", 0, ""))
	process := exec.Command(binary, "node", "--config", config, "--kubelet-dir", p.kubeletDir, "--node-name", "node-1")
	must(b, process.Start())
	connection, err := grpc.NewClient("unix://"+filepath.Join(p.kubeletDir, "plugins/csi.step-ca.io/csi.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	must(b, err)
	p.node = csi.NewNodeClient(connection)
	b.Cleanup(func() {
		connection.Close()
		_ = process.Process.Signal(syscall.SIGTERM)
		must(b, process.Wait())
		if os.Getenv("CPU") != "" {
			fmt.Printf("CPU plugin %v user %v sys\n", process.ProcessState.UserTime(), process.ProcessState.SystemTime())
		}
	})
	for {
		answer, err := csi.NewIdentityClient(connection).Probe(context.Background(), &csi.ProbeRequest{})
		must(b, err)
		if answer.GetReady().GetValue() {
			return p
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *plugin) request(b *testing.B, i int) *csi.NodePublishVolumeRequest {
	uid := fmt.Sprintf("uid-%d", i)
	target := filepath.Join(p.kubeletDir, "pods", uid, "volumes/kubernetes.io~csi/tls/mount")
	must(b, os.MkdirAll(filepath.Dir(target), 0o755))
	return &csi.NodePublishVolumeRequest{
		VolumeId: "csi-" + uid, TargetPath: target, Readonly: true,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "web-" + uid, "csi.storage.k8s.io/pod.namespace": "shop",
			"csi.storage.k8s.io/pod.uid": uid, "csi.storage.k8s.io/serviceAccount.name": "web", "service-names": "web",
		},
	}
}

func (p *plugin) publish(b *testing.B, r *csi.NodePublishVolumeRequest) {
	_, err := p.node.NodePublishVolume(context.Background(), r)
	must(b, err)
}

func (p *plugin) unpublish(b *testing.B, r *csi.NodePublishVolumeRequest) {
	_, err := p.node.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: r.GetVolumeId(), TargetPath: r.GetTargetPath()})
	must(b, err)
}
