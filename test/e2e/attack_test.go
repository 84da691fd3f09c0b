//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.step.sm/crypto/jose"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

const authorityName = "step-csi-ra." + plugin + ".svc.cluster.local"

// attacker calls the registration authority directly.
type attacker struct {
	t      *testing.T
	client rapb.RegistrationAuthorityClient
	plugin string // the token of the node plugin's pod
}

func newAttacker(t *testing.T) *attacker {
	t.Helper()
	roots := x509.NewCertPool()
	if root := kubectl(t, "-n", plugin, "get", "configmap", "step-csi-ca-root", "-o", `jsonpath={.data.root_ca\.crt}`); !roots.AppendCertsFromPEM([]byte(root)) {
		t.Fatal("the ConfigMap contains no root")
	}
	replica := strings.Fields(kubectl(t, "-n", plugin, "get", "pods", "-l", "app.kubernetes.io/name=step-csi-ra", "--field-selector=status.phase=Running", "-o", "name"))[0]
	connection, err := grpc.NewClient(forward(t, replica, "8443"), grpc.WithTransportCredentials(
		credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: authorityName})))
	must(t, err)
	t.Cleanup(func() { connection.Close() })
	return &attacker{t: t, client: rapb.NewRegistrationAuthorityClient(connection), plugin: pluginFile(t, "token")}
}

// forward makes a port of the pod reachable on this machine, and returns its address.
func forward(t *testing.T, pod, port string) string {
	t.Helper()
	c := exec.Command("kubectl", "-n", plugin, "port-forward", pod, ":"+port)
	c.Env = cluster.env
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	_, rest, found := strings.Cut(line, "Forwarding from ")
	address, _, ok := strings.Cut(rest, " ->")
	if !found || !ok {
		t.Fatalf("port-forward: %v: %q", err, line)
	}
	return address
}

// pluginFile reads a file of the plugin's configuration, as root on the node.
func pluginFile(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(node(t, "cat /var/lib/kubelet/pods/"+pluginUID(t)+"/volumes/kubernetes.io~projected/config/"+name))
}

func pluginUID(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", plugin, "get", "pods", "-l", "app.kubernetes.io/name=step-csi", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[0].metadata.uid}")
}

// victim is the pod that the attacker requests a certificate for.
type victim struct{ namespace, name, uid, account, node string }

func (a *attacker) victim(namespace, name string) victim {
	a.t.Helper()
	fields := strings.Split(kubectl(a.t, "-n", namespace, "get", "pod", name, "-o", "jsonpath={.metadata.uid}|{.spec.serviceAccountName}|{.spec.nodeName}"), "|")
	return victim{namespace, name, fields[0], fields[1], fields[2]}
}

// token makes a token of the pod's service account, as an administrator can.
func (v victim) token(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(kubectl(t, append([]string{"-n", v.namespace, "create", "token", v.account}, args...)...))
}

func (v victim) bound(t *testing.T) string {
	t.Helper()
	return v.token(t, "--audience=step-csi", "--bound-object-kind=Pod", "--bound-object-name="+v.name, "--bound-object-uid="+v.uid)
}

// ask requests a certificate with the pod's own names.
func (a *attacker) ask(caller, token string, v victim) (*rapb.SignResponse, error) {
	a.t.Helper()
	uid, err := names.ParseCommonName(v.uid)
	must(a.t, err)
	id, err := names.ParseURI("spiffe://cluster.local/ns/" + v.namespace + "/sa/" + v.account)
	must(a.t, err)
	key, err := issuer.ECDSAP256.Generate()
	must(a.t, err)
	csr, err := issuer.NewCSR(issuer.Request{CommonName: uid, URIs: []names.URI{id}}, key)
	must(a.t, err)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(a.t.Context(), "authorization", "Bearer "+caller), time.Minute)
	defer cancel()
	return a.client.Sign(ctx, &rapb.SignRequest{
		Issuer: "default", Csr: csr.Raw, DurationSeconds: 3600, PodToken: token,
		Pod: &rapb.Pod{Namespace: v.namespace, Name: v.name, Uid: v.uid, ServiceAccount: v.account, Node: v.node},
	})
}

func (a *attacker) refused(what string, want codes.Code, message, caller, token string, v victim) {
	a.t.Helper()
	answer, err := a.ask(caller, token, v)
	if status.Code(err) != want || !strings.Contains(err.Error(), message) || len(answer.GetChain()) > 0 {
		a.t.Errorf("%s: got error %v and %d certificates, want %s with %q", what, err, len(answer.GetChain()), want, message)
	}
}

// plain makes a pod without a volume. where is the name of its node, or empty.
func plain(t *testing.T, namespace, name, where string) {
	t.Helper()
	must(t, applyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": %q}, "spec": {"nodeName": %q, "terminationGracePeriodSeconds": 0,
		"tolerations": [{"operator": "Exists"}], "automountServiceAccountToken": false,
		"containers": [{"name": "app", "image": "docker.io/library/busybox:1.37", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"]}]}}`, name, namespace, where)))
}

// elsewhere makes a Node object without a machine, and a pod on that node.
func elsewhere(t *testing.T, namespace string) {
	t.Helper()
	name := "beside-" + namespace
	must(t, applyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q}}`, name)))
	t.Cleanup(func() {
		_, _ = command("kubectl", "-n", namespace, "delete", "pod", "distant", "--force", "--ignore-not-found")
		kubectl(t, "delete", "node", name)
	})
	plain(t, namespace, "distant", name)
}

// The authority rejects every kind of insufficient token, with the real API server.
func attackTokens(t *testing.T) {
	const n = "attack"
	namespace(t, n, "baseline")
	plain(t, n, "mine", "")
	plain(t, n, "short-lived", "")
	kubectl(t, "-n", n, "wait", "--for=condition=Ready", "pod/mine", "pod/short-lived", "--timeout=5m")
	elsewhere(t, n)
	a := newAttacker(t)
	mine, gone, distant := a.victim(n, "mine"), a.victim(n, "short-lived"), a.victim(n, "distant")
	token := mine.bound(t)
	if _, err := a.ask(a.plugin, token, mine); err != nil {
		t.Fatalf("the authority rejected a valid request: %v", err)
	}

	late := gone.bound(t)
	kubectl(t, "-n", n, "delete", "pod", gone.name, "--now")
	a.refused("a deleted pod", codes.Unauthenticated, "no valid token of the pod", a.plugin, late, gone)
	plain(t, n, gone.name, "")
	a.refused("a new pod with the name of a deleted pod", codes.Unauthenticated, "no valid token of the pod", a.plugin, late, a.victim(n, gone.name))

	a.refused("a token for the API server", codes.Unauthenticated, "no valid token of the pod", a.plugin,
		mine.token(t, "--bound-object-kind=Pod", "--bound-object-name="+mine.name, "--bound-object-uid="+mine.uid), mine)
	a.refused("a token that is not bound to a pod", codes.Unauthenticated, "not bound to a pod", a.plugin, mine.token(t, "--audience=step-csi"), mine)
	a.refused("an expired token", codes.Unauthenticated, "expired", a.plugin, resign(t, token, clusterKey(t), func(c map[string]any) {
		c["iat"], c["nbf"], c["exp"] = time.Now().Add(-2*time.Hour).Unix(), time.Now().Add(-2*time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	}), mine)
	a.refused("a token that is not valid yet", codes.Unauthenticated, "no valid token of the pod", a.plugin, resign(t, token, clusterKey(t), func(c map[string]any) {
		c["nbf"] = time.Now().Add(24 * time.Hour).Unix()
	}), mine)
	own, err := issuer.ECDSAP256.Generate()
	must(t, err)
	a.refused("a token signed with the attacker's key", codes.Unauthenticated, "no valid token of the pod", a.plugin, resign(t, token, own.Signer, func(map[string]any) {}), mine)
	parts := strings.Split(token, ".")
	parts[1] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(decode(t, parts[1]), mine.uid, distant.uid, 1)))
	a.refused("a modified token", codes.Unauthenticated, "no valid token of the pod", a.plugin, strings.Join(parts, "."), mine)
	a.refused("the token of another pod", codes.PermissionDenied, "not that of the pod", a.plugin, token, distant)
	a.refused("a pod on another node", codes.PermissionDenied, "another node", a.plugin, distant.bound(t), distant)

	a.refused("a pod as the caller", codes.PermissionDenied, "only node plugins", token, token, mine)
	victim := a.victim(plugin, pluginPod(t))
	a.refused("the plugin's account without its pod", codes.Unauthenticated, "the caller's token", victim.token(t, "--audience=step-csi"), token, mine)
	a.refused("the plugin's token for another audience", codes.Unauthenticated, "the caller's token",
		victim.token(t, "--bound-object-kind=Pod", "--bound-object-name="+victim.name, "--bound-object-uid="+victim.uid), token, mine)
	a.refused("a certificate for the plugin itself", codes.PermissionDenied, "the node plugin itself", a.plugin, a.plugin, victim)
}

// A pod's spec cannot change the pod's identity, and cannot request a CA's or the
// authority's name.
func attackPods(t *testing.T) {
	const n = "attack-pods"
	namespace(t, n, "baseline")
	forged := pod{namespace: n, name: "forged-0", attributes: map[string]string{
		"csi.storage.k8s.io/pod.namespace":         "kube-system",
		"csi.storage.k8s.io/pod.name":              "coredns",
		"csi.storage.k8s.io/pod.uid":               "00000000-0000-0000-0000-000000000000",
		"csi.storage.k8s.io/serviceAccount.name":   "coredns",
		"csi.storage.k8s.io/serviceAccount.tokens": `{"step-csi": {"token": "forged.forged.forged", "expirationTimestamp": "2099-01-01T00:00:00Z"}}`,
	}}
	forged.start(t)
	uid := kubectl(t, "-n", n, "get", "pod", forged.name, "-o", "jsonpath={.metadata.uid}")
	if leaf := forged.files(t); len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/"+n+"/sa/default" || leaf.Subject.CommonName != uid {
		t.Errorf("the certificate has the subject %s and the URIs %s", leaf.Subject, leaf.URIs)
	}
	for name, namespace := range map[string]string{"step-csi-ra": plugin, "step-ca": identity} {
		p := pod{namespace: namespace, name: "takes-" + name, attributes: map[string]string{"service-names": name}, security: nonRootSecurity}
		must(t, applyText(p.manifest()))
		t.Cleanup(func() { kubectl(t, "-n", p.namespace, "delete", "pod", p.name, "--now") })
		p.waitEvent(t, patience, name+"."+namespace, "reserved")
	}
}

// In mode ra, an attacker has all that a node has: the plugin's files, environment and
// token, and the kubelet's credential. The attacker gets no certificate for a pod on
// another node.
func compromisedNode(t *testing.T) {
	const n = "compromised"
	namespace(t, n, "baseline")
	elsewhere(t, n)
	password, err := base64.StdEncoding.DecodeString(kubectl(t, "-n", plugin, "get", "secret", "step-csi-provisioner", "-o", "jsonpath={.data.password}"))
	must(t, err)
	if loot := loot(t); strings.Contains(loot, strings.TrimSpace(string(password))) {
		t.Error("the node has the password of the CA's provisioner")
	}
	a := newAttacker(t)
	distant := a.victim(n, "distant")
	// The node's own credentials do not allow a token of that pod.
	for _, who := range []string{"kubelet", "kube-proxy"} {
		out, err := tool("exec", "kubectl", "--kubeconfig", "/run/cluster/state/config/"+who, "-n", n, "create", "token", distant.account,
			"--audience=step-csi", "--bound-object-kind=Pod", "--bound-object-name="+distant.name, "--bound-object-uid="+distant.uid)
		if err == nil || !strings.Contains(err.Error(), "forbidden") && !strings.Contains(err.Error(), "orbidden") {
			t.Errorf("%s got a token: %v: %s", who, err, out)
		}
	}
	// The node can set some labels of its Node, but not those that the documentation
	// proposes to keep the registration authority on trusted nodes.
	own := kubectl(t, "-n", plugin, "get", "pod", pluginPod(t), "-o", "jsonpath={.spec.nodeName}")
	for label, allowed := range map[string]bool{
		"example.com/attracts":                       true,
		"node-restriction.kubernetes.io/step-csi-ra": false,
		"node-role.kubernetes.io/step-csi-attacks":   false,
	} {
		out, err := tool("exec", "kubectl", "--kubeconfig", "/run/cluster/state/config/kubelet", "label", "node", own, label+"=x")
		if allowed {
			must(t, err)
			kubectl(t, "label", "node", own, label+"-")
		} else if err == nil || !strings.Contains(err.Error(), "is not allowed to modify labels") {
			t.Errorf("the node sets the label %s: %v: %s", label, err, out)
		}
	}
	// The plugin's token is not valid for the API server.
	if out, err := command("kubectl", "--token", a.plugin, "--kubeconfig", "/dev/null", "auth", "whoami"); err == nil {
		t.Errorf("the API server accepts the plugin's token: %s", out)
	}
	a.refused("a forged token for that pod", codes.Unauthenticated, "no valid token of the pod", a.plugin, "e30.e30.e30", distant)
	a.refused("the plugin's token for that pod", codes.PermissionDenied, "", a.plugin, a.plugin, distant)
	// A stolen token of that pod does not help either.
	a.refused("a stolen token", codes.PermissionDenied, "another node", a.plugin, distant.bound(t), distant)
}

// A pod has finished, and its object still exists. Its volume is unmounted, so that
// nothing renews its certificate, and no plugin has its key. The API server still accepts
// its token: a node can get certificates for the pod until the object is deleted, and
// then no longer.
func finishedPod(t *testing.T) {
	const n = "finished"
	namespace(t, n, "baseline")
	p := pod{namespace: n, name: "done", attributes: short("service-names", "done"), script: "test -s /etc/tls/tls.key"}
	must(t, applyText(strings.Replace(p.manifest(), `"spec": {`, `"spec": {"restartPolicy": "Never",`, 1)))
	kubectl(t, "-n", n, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+p.name, "--timeout=5m")
	uid := p.uid(t)
	eventually(t, patience, func() error {
		mounts, err := tool("exec", "sh", "-c", "grep "+uid+".*kubernetes.io~csi /proc/self/mountinfo; true")
		if err == nil && mounts != "" {
			err = fmt.Errorf("still mounted:\n%s", mounts)
		}
		return err
	})
	if phase := kubectl(t, "-n", n, "get", "pod", p.name, "-o", "jsonpath={.status.phase}"); phase != "Succeeded" {
		t.Fatalf("the pod is %s", phase)
	}
	a := newAttacker(t)
	v := a.victim(n, p.name)
	token := v.bound(t)
	if _, err := a.ask(a.plugin, token, v); err != nil {
		t.Errorf("a finished pod whose object exists: %v; docs/security.md says that it counts as running", err)
	}
	kubectl(t, "-n", n, "delete", "pod", p.name, "--now")
	eventually(t, patience, func() error { // the API server keeps a successful review for ten seconds
		if _, err := a.ask(a.plugin, token, v); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "no valid token of the pod") {
			return fmt.Errorf("a finished pod that was deleted: %w", err)
		}
		return nil
	})
}

// loot returns the plugin's files and environment on its node.
func loot(t *testing.T) string {
	t.Helper()
	return node(t, `find /var/lib/kubelet/pods/`+pluginUID(t)+` /var/lib/kubelet/plugins/`+driverName+` -type f -exec cat {} +; for d in /proc/[0-9]*; do case "$(tr '\0' ' ' < $d/cmdline)" in /step-csi\ node*) cat $d/environ; esac; done`)
}

// In mode node, the node also has the password, and with it can request any name.
func nodeMode(t *testing.T) {
	p := witness(t, "node-mode")
	leaf := p.files(t)
	document := openPage(t, "mode.md")
	t.Cleanup(func() { must(t, installPlugin()) })
	document.change(t, "mode: node")
	document.sh(t, "helm upgrade")
	leaf = p.waitRotation(t, leaf, patience)
	fresh := pod{namespace: p.namespace, name: "fresh"}
	fresh.start(t)
	fresh.files(t)
	password := pluginFile(t, "issuers/default/password")
	if !strings.Contains(loot(t), password) {
		t.Error("the plugin's files on the node do not contain the password")
	}
	out := kubectl(t, "-n", identity, "exec", "deployment/step-ca", "--", "sh", "-euc", `
		printf %s '`+password+`' > /tmp/stolen
		step ca certificate db.prod.svc /tmp/db.crt /tmp/db.key --force --provisioner admin --provisioner-password-file /tmp/stolen \
			--ca-url https://step-ca.flexstack-identity.svc.cluster.local:9000 --root /home/step/certs/root_ca.crt 2>&1
		step certificate inspect --short /tmp/db.crt; rm /tmp/stolen /tmp/db.*`)
	if !strings.Contains(out, "db.prod.svc") {
		t.Errorf("step-ca did not sign with the stolen password: %s", out)
	}
	document.change(t, "mode: ra")
	document.sh(t, "helm upgrade")
	p.waitRotation(t, leaf, patience)
	sawAll(t, p)
}

// clusterKey returns the API server's key for signing tokens.
func clusterKey(t *testing.T) any {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	key, err := jose.ReadKey(filepath.Join(cache, "step-csi", "clusters", cluster.name, "pki", "service-account.key"))
	must(t, err)
	return key.Key
}

func decode(t *testing.T, part string) string {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(part)
	must(t, err)
	return string(data)
}

// resign returns the token with changed claims, signed with the key.
func resign(t *testing.T, token string, key any, change func(claims map[string]any)) string {
	t.Helper()
	parts := strings.Split(token, ".")
	claims, header := map[string]any{}, map[string]any{}
	must(t, json.Unmarshal([]byte(decode(t, parts[0])), &header))
	must(t, json.Unmarshal([]byte(decode(t, parts[1])), &claims))
	change(claims)
	options := (&jose.SignerOptions{}).WithHeader("kid", header["kid"])
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(header["alg"].(string)), Key: key}, options)
	must(t, err)
	signed, err := jose.Signed(signer).Claims(claims).CompactSerialize()
	must(t, err)
	return signed
}
