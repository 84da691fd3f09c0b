package bench

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/realca"
)

// BenchmarkPublishThroughAuthority publishes through the registration authority,
// which reviews both tokens at the API server of a real cluster. Its rounds
// alternate with rounds of publishing with direct signing; of-direct is the ratio of
// the medians. Each call has a new pod token, because the API server caches token
// reviews for ten seconds.
func BenchmarkPublishThroughAuthority(b *testing.B) {
	kubeconfig := os.Getenv("STEP_CSI_BENCH_KUBECONFIG")
	if kubeconfig == "" {
		b.Fatal("needs a cluster: run make bench")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	node.Must(b, err)
	config.QPS = -1
	ca, pods := startCA(b), newPods(b, config)
	direct := startNode(b, ca)
	through := startNodeWith(b, issuerAt(b, ca, startAuthority(b, ca, pods.authority(b, config)), pods.token(b, "step-ca", "plugin")))
	for _, callers := range atOnce {
		b.Run(fmt.Sprintf("at-once=%d", callers), func(b *testing.B) {
			round := max(64, 4*callers)
			requests, asked := direct.requests(round), through.requests(round)
			for i := range round {
				pods.make(b, "shop", fmt.Sprint("web-", i), "web")
			}
			var limit, took times
			for left := b.N; left > 0; left -= round {
				for i := range asked {
					pods.identify(b, asked[i], fmt.Sprint("web-", i))
				}
				limit = append(limit, publishAll(b, direct, callers, min(left, round), requests)...)
				took = append(took, publishAll(b, through, callers, min(left, round), asked)...)
			}
			b.ReportMetric(limit.percentile(50), "ms/direct-median")
			b.ReportMetric(took.percentile(50), "ms/median")
			b.ReportMetric(took.percentile(99), "ms/p99")
			b.ReportMetric(took.percentile(50)/limit.percentile(50), "of-direct")
		})
	}
}

func publishAll(b *testing.B, n *inProcess, callers, count int, requests []*csi.NodePublishVolumeRequest) times {
	took := measure(callers, count, func(i int) {
		_, err := n.driver.NodePublishVolume(context.Background(), requests[i])
		node.Must(b, err)
	})
	for _, r := range requests {
		n.unpublish(b, r)
	}
	return took
}

// startAuthority starts the real registration authority as a process and returns its
// URL.
func startAuthority(b *testing.B, ca *realca.CA, api *rest.Config) string {
	b.Helper()
	directory := b.TempDir()
	binary, err := node.Build(directory, false)
	node.Must(b, err)
	name, password := ca.Provisioner()
	for file, content := range map[string]string{
		"password": password, "token": api.BearerToken, "api.crt": string(api.CAData),
		"step-csi.yaml": fmt.Sprintf(`
issuers:
  default: {url: %q, fingerprint: %s, provisioner: {type: jwk, name: %s, passwordFile: password}}
authority:
  names: [localhost]
  plugin: step-ca/plugin
  limits: {node: {rate: 1e6, burst: 1000000}, pod: {rate: 1e6, burst: 1000000}}
  kubernetes: {url: %q, caFile: %[5]s/api.crt, tokenFile: %[5]s/token}
`, ca.URL(), ca.Fingerprint(), name, api.Host, directory),
	} {
		node.Must(b, os.WriteFile(filepath.Join(directory, file), []byte(content), 0o600))
	}
	address := freeAddress(b)
	process := binary.Command("ra", "--config", filepath.Join(directory, "step-csi.yaml"), "--listen", address)
	node.Must(b, process.Start())
	b.Cleanup(func() {
		node.Must(b, process.Process.Signal(syscall.SIGTERM))
		node.Must(b, process.Wait())
	})
	_, port, err := net.SplitHostPort(address)
	node.Must(b, err)
	return "https://localhost:" + port
}

func freeAddress(b *testing.B) string {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	node.Must(b, err)
	defer listener.Close()
	return listener.Addr().String()
}

func issuerAt(b *testing.B, ca *realca.CA, url, token string) *issuer.Issuer {
	b.Helper()
	signer, err := ra.New(ra.Config{URL: url, Fingerprint: ca.Fingerprint(), Issuer: "default", Token: func() ([]byte, error) { return []byte(token), nil }})
	node.Must(b, err)
	b.Cleanup(signer.Close)
	for try := 0; signer.Connect(b.Context()) != nil && try < 100; try++ {
		time.Sleep(50 * time.Millisecond)
	}
	i, err := issuer.New(issuer.Config{Signer: signer, Policy: func(context.Context, issuer.Pod, issuer.Request) error { return nil }})
	node.Must(b, err)
	return i
}

// pods are Pod objects in the cluster. Their node does not exist, so no kubelet runs
// them.
type pods struct {
	client *kubernetes.Clientset
	uids   map[string]string
}

func newPods(b *testing.B, config *rest.Config) *pods {
	b.Helper()
	log.SetOutput(io.Discard)
	client, err := kubernetes.NewForConfig(config)
	node.Must(b, err)
	p := &pods{client: client, uids: map[string]string{}}
	_, err = client.CoreV1().Nodes().Create(b.Context(), &core.Node{ObjectMeta: meta.ObjectMeta{Name: "node-1"}}, meta.CreateOptions{})
	mustExist(b, err)
	for namespace, account := range map[string]string{"step-ca": "plugin", "shop": "web"} {
		_, err := client.CoreV1().Namespaces().Create(b.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: namespace}}, meta.CreateOptions{})
		mustExist(b, err)
		_, err = client.CoreV1().ServiceAccounts(namespace).Create(b.Context(), &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: account}}, meta.CreateOptions{})
		mustExist(b, err)
	}
	p.make(b, "step-ca", "plugin", "plugin")
	return p
}

// authority returns the registration authority's access to the API server: its own
// token, with the one permission that it needs.
func (p *pods) authority(b *testing.B, config *rest.Config) *rest.Config {
	b.Helper()
	const name = "step-csi-ra"
	object := meta.ObjectMeta{Name: name}
	_, err := p.client.CoreV1().ServiceAccounts("step-ca").Create(b.Context(), &core.ServiceAccount{ObjectMeta: object}, meta.CreateOptions{})
	mustExist(b, err)
	_, err = p.client.RbacV1().ClusterRoles().Create(b.Context(), &rbac.ClusterRole{ObjectMeta: object, Rules: []rbac.PolicyRule{
		{APIGroups: []string{authentication.GroupName}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
	}}, meta.CreateOptions{})
	mustExist(b, err)
	_, err = p.client.RbacV1().ClusterRoleBindings().Create(b.Context(), &rbac.ClusterRoleBinding{
		ObjectMeta: object, RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbac.Subject{{Kind: rbac.ServiceAccountKind, Namespace: "step-ca", Name: name}},
	}, meta.CreateOptions{})
	mustExist(b, err)
	answer, err := p.client.CoreV1().ServiceAccounts("step-ca").CreateToken(b.Context(), name, &authentication.TokenRequest{}, meta.CreateOptions{})
	node.Must(b, err)
	own := rest.AnonymousClientConfig(config)
	own.BearerToken = answer.Status.Token
	return own
}

// mustExist accepts what another benchmark has created in the same cluster.
func mustExist(b *testing.B, err error) {
	b.Helper()
	if !apierrors.IsAlreadyExists(err) {
		node.Must(b, err)
	}
}

func (p *pods) make(b *testing.B, namespace, name, account string) {
	b.Helper()
	if p.uids[name] != "" {
		return
	}
	pod, err := p.client.CoreV1().Pods(namespace).Create(b.Context(), &core.Pod{
		ObjectMeta: meta.ObjectMeta{Name: name},
		Spec: core.PodSpec{
			NodeName: "node-1", ServiceAccountName: account,
			Containers: []core.Container{{Name: "app", Image: "none"}},
		},
	}, meta.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		pod, err = p.client.CoreV1().Pods(namespace).Get(b.Context(), name, meta.GetOptions{})
	}
	node.Must(b, err)
	p.uids[name] = string(pod.UID)
}

// token requests a new token bound to the pod, as the kubelet does.
func (p *pods) token(b *testing.B, namespace, name string) string {
	b.Helper()
	account := map[string]string{"step-ca": "plugin", "shop": "web"}[namespace]
	answer, err := p.client.CoreV1().ServiceAccounts(namespace).CreateToken(b.Context(), account, &authentication.TokenRequest{
		Spec: authentication.TokenRequestSpec{
			Audiences:      []string{issuer.TokenAudience},
			BoundObjectRef: &authentication.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: name},
		},
	}, meta.CreateOptions{})
	node.Must(b, err)
	return answer.Status.Token
}

// identify sets the pod and a new token in the request.
func (p *pods) identify(b *testing.B, r *csi.NodePublishVolumeRequest, name string) {
	b.Helper()
	r.VolumeContext["csi.storage.k8s.io/pod.name"] = name
	r.VolumeContext["csi.storage.k8s.io/pod.uid"] = p.uids[name]
	r.Secrets = node.Secrets(p.token(b, "shop", name))
}
