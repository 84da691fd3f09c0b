//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The real API server validates every manifest with all fields. Kubernetes 1.34 does not
// know the field that deploy/kustomize/README.md says to remove before 1.35.
func validation(t *testing.T) {
	version := kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}")
	installMonitoringKinds(t)
	namespace(t, "validation", "privileged")
	for _, file := range allKustomizations(t) {
		directory := filepath.Dir(file)
		rendered, err := command("kubectl", "kustomize", directory)
		must(t, err)
		if strings.HasPrefix(version, "v1.34.") {
			rendered = strings.Replace(rendered, "  serviceAccountTokenInSecrets: true\n", "", 1)
		}
		serverSide(t, directory, rendered)
	}
	values, err := filepath.Glob("deploy/examples/values/*.yaml")
	must(t, err)
	for _, file := range append(values, "test/chart/testdata/all.yaml") {
		rendered, err := command("helm", "template", "step-csi", chart, "-n", "validation", "-f", file, "--kube-version", version)
		must(t, err)
		serverSide(t, file, rendered)
	}
	const exclusive = "ra.hostNetwork=true,monitoring.serviceMonitor.enabled=true" // all.yaml has their alternatives
	rendered, err := command("helm", "template", "step-csi", chart, "-n", "validation", "--set", exclusive, "--kube-version", version)
	must(t, err)
	serverSide(t, exclusive, rendered)
}

func allKustomizations(t *testing.T) []string {
	t.Helper()
	found, err := command("find", "deploy", "-name", "kustomization.yaml")
	must(t, err)
	all := strings.Fields(found)
	if len(all) < 6 {
		t.Fatalf("found only %d kustomizations: %s", len(all), all)
	}
	return all
}

// serverSide makes the API server validate all objects in a dry run. The namespace of
// an object must exist, so serverSide moves all objects into one namespace.
func serverSide(t *testing.T, what, manifests string) {
	t.Helper()
	for object := range strings.SplitSeq(manifests, "\n---") {
		if strings.TrimSpace(strings.TrimPrefix(object, "---")) == "" || strings.Contains(object, "\nkind: Namespace") {
			continue
		}
		var moved strings.Builder
		for line := range strings.Lines(object) {
			if strings.HasPrefix(line, "  namespace: ") {
				line = "  namespace: validation\n"
			}
			moved.WriteString(line)
		}
		if _, err := commandWith([]byte(moved.String()), "kubectl", "create", "--dry-run=server", "--validate=strict", "-f", "-"); err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
			t.Errorf("%s: %v\n%s", what, err, moved.String())
		}
	}
}

// The pod of the README's quick start prints what the README says. The claim of
// deploy/step-ca has a volume of the cluster's default StorageClass, with the CA in it.
func quickStart(t *testing.T) {
	volume := kubectl(t, "-n", identity, "get", "persistentvolumeclaim", "step-ca", "-o", "jsonpath={.spec.volumeName}")
	path := kubectl(t, "-n", identity, "get", "persistentvolume", volume, "-o", "jsonpath={.spec.local.path}")
	node(t, "test -s "+path+"/certs/root_ca.crt")
	out, err := shellBlock("README.md", "**4. A pod**", func(script string) string {
		return strings.Replace(script, "step-csi:0.1.0", "step-csi:dev", 1)
	})
	must(t, err)
	printsQuickStart(t, out)
}

// printsQuickStart checks that a pod printed what the README shows, apart from the serial
// number and the times.
func printsQuickStart(t *testing.T, out string) {
	t.Helper()
	want, err := block("README.md", "It prints:", "text")
	must(t, err)
	changing := regexp.MustCompile(`(?m)^(serial|not before|not after) .*`)
	want = changing.ReplaceAllString(want, "$1")
	if !strings.Contains(changing.ReplaceAllString(out, "$1"), want) {
		t.Errorf("the pod printed\n%s\nand the README says\n%s", out, want)
	}
}

// The pod has the certificate of the guide's step 3 at the path of its step 4.
func guide(t *testing.T) {
	p := pod{namespace: "default", name: "my-service-0", attributes: map[string]string{"service-names": "my-service"}}
	t.Cleanup(func() { kubectl(t, "-n", p.namespace, "delete", "pod", p.name, "--now") })
	p.start(t)
	leaf := p.files(t)
	names := []string{"my-service", "my-service.default", "my-service.default.svc", "my-service.default.svc.cluster.local"}
	slices.Sort(leaf.DNSNames)
	if !slices.Equal(leaf.DNSNames, names) {
		t.Errorf("got the DNS names %q, want %q", leaf.DNSNames, names)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/default" {
		t.Errorf("got the URIs %s", leaf.URIs)
	}
	if lifetime := time.Until(leaf.NotAfter); lifetime < 23*time.Hour || lifetime > 24*time.Hour {
		t.Errorf("the certificate is valid for another %s, want just below 24h", lifetime)
	}
	// The guide's step 7.
	for _, file := range []string{"tls.crt", "ca.crt"} {
		content, err := p.exec("cat", "/etc/tls/"+file)
		must(t, err)
		_, err = commandWith([]byte(content), "kubectl", "-n", identity, "exec", "-i", "deployment/step-ca", "--", "sh", "-c", "cat > /tmp/"+file)
		must(t, err)
	}
	kubectl(t, "-n", identity, "exec", "deployment/step-ca", "--", "step", "certificate", "verify", "/tmp/tls.crt", "--roots", "/tmp/ca.crt")
	// The volume is read-only even if the container's mount is not.
	for _, attempt := range []string{"touch /etc/tls/x", "rm /etc/tls/tls.key", "echo x > /etc/tls/tls.crt", "mkdir /etc/tls/..data/x"} {
		if out, err := p.exec("sh", "-c", "{ "+attempt+"; } 2>&1"); err == nil || !strings.Contains(out, "Read-only file system") {
			t.Errorf("%s: %v: %s", attempt, err, out)
		}
	}
	// Root on the node cannot write to the volume either.
	if out := node(t, "touch /var/lib/kubelet/pods/"+p.uid(t)+"/volumes/kubernetes.io~csi/tls/mount/x 2>&1; true"); !strings.Contains(out, "Read-only file system") {
		t.Errorf("root on the node writes to the volume: %q", out)
	}
	// No Secret holds the certificate.
	if secrets := kubectl(t, "-n", "default", "get", "secrets", "-o", "name"); secrets != "" {
		t.Errorf("found the Secrets %s", secrets)
	}
}

func nonRoot(t *testing.T) {
	namespace(t, "non-root", "restricted")
	for name, test := range map[string]struct{ security, mode string }{
		"group":    {`{"runAsNonRoot": true, "runAsUser": 4711, "runAsGroup": 4711, "fsGroup": 4712}`, "440 0 4712"},
		"no-group": {`{"runAsNonRoot": true, "runAsUser": 4711, "runAsGroup": 4711}`, "444 0 0"},
	} {
		p := pod{namespace: "non-root", name: name, security: test.security, mountReadOnly: true}
		p.start(t)
		p.files(t)
		out, err := p.exec("sh", "-c", "stat -L -c '%a %u %g' /etc/tls/tls.key; id -u")
		must(t, err)
		if out != test.mode+"\n4711\n" {
			t.Errorf("%s: %q", name, out)
		}
	}
}

// The pod sees its files replaced twice, without a restart.
func rotation(t *testing.T) {
	p := witness(t, "rotation")
	first := p.files(t)
	second := p.waitRotation(t, first, patience)
	third := p.waitRotation(t, second, patience)
	if !third.NotAfter.After(first.NotAfter) {
		t.Errorf("the first certificate is valid until %s, and the third until %s", first.NotAfter, third.NotAfter)
	}
	if fmt.Sprint(first.PublicKey) == fmt.Sprint(second.PublicKey) {
		t.Error("the renewed certificate has the old key")
	}
	sawAll(t, p)
}

func deletion(t *testing.T) {
	namespace(t, "deletion", "baseline")
	p := pod{namespace: "deletion", name: "short-lived"}
	p.start(t)
	uid := p.uid(t)
	if here, err := onNode(uid); err != nil || !strings.Contains(here, "kubernetes.io~csi/tls/mount") {
		t.Fatalf("on the node: %v: %s", err, here)
	}
	kubectl(t, "-n", p.namespace, "delete", "pod", p.name, "--wait=true")
	eventually(t, patience, func() error { return gone(uid) })
}

// The pod's events say why a request is rejected, and what to change.
func refusals(t *testing.T) {
	namespace(t, "refusals", "baseline")
	for name, test := range map[string]struct {
		attributes map[string]string
		words      []string
	}{
		"typo":       {map[string]string{"dns-name": "x.refusals"}, []string{`dns-name`, `dns-names`}},
		"no-issuer":  {map[string]string{"issuer": "production"}, []string{`issuer`, `production`, `default`}},
		"too-long":   {map[string]string{"duration": "48h"}, []string{"duration", "48h", "24h"}},
		"not-mine":   {map[string]string{"dns-names": "postgres.kube-system.svc"}, []string{"postgres.kube-system.svc is not allowed", "<x>.refusals.svc"}},
		"not-a-name": {map[string]string{"service-names": "my_service"}, []string{"service-names", "my_service"}},
	} {
		p := pod{namespace: "refusals", name: name, attributes: test.attributes}
		must(t, applyText(p.manifest()))
		p.waitEvent(t, patience, test.words...)
		if phase := kubectl(t, "-n", p.namespace, "get", "pod", name, "-o", "jsonpath={.status.phase}"); phase != "Pending" {
			t.Errorf("%s: the pod is %s, want Pending", name, phase)
		}
	}
}

func helmTest(t *testing.T) {
	if out, err := command("helm", "-n", plugin, "test", "step-csi", "--logs"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The chart makes NetworkPolicies by default, and the API server accepts all that it can
// make. The test does not show that they are enforced: that depends on the cluster's
// network. What they admit is tested in test/chart.
func networkPolicy(t *testing.T) {
	if names := kubectl(t, "-n", plugin, "get", "networkpolicies", "-o", "jsonpath={.items[*].metadata.name}"); names != "step-csi step-csi-ra" {
		t.Errorf("the installed NetworkPolicies are %q", names)
	}
	const n = "network-policy"
	namespace(t, n, "baseline")
	rendered, err := command("helm", "template", "step-csi", chart, "-n", n, "-f", guideFile, "--set", "networkPolicy.restrictEgress=true,networkPolicy.nodeCIDRs={192.0.2.0/24,2001:db8::/64}", "--show-only", "templates/networkpolicy.yaml")
	must(t, err)
	must(t, applyText(rendered))
	out := kubectl(t, "-n", n, "describe", "networkpolicies")
	for _, text := range []string{"9000/TCP", "CIDR: 192.0.2.0/24", "CIDR: 2001:db8::/64"} {
		if !strings.Contains(out, text) {
			t.Errorf("the NetworkPolicies do not have %q:\n%s", text, out)
		}
	}
}

// A second cluster on the machine does not disturb the first, and leaves nothing.
func twoClusters(t *testing.T) {
	second := cluster.name + "-2"
	run := func(args ...string) string {
		t.Helper()
		out, err := tool(append([]string{"--name", second}, args...)...)
		must(t, err)
		return out
	}
	before := interfaces(t)
	variables := run("--owner", fmt.Sprint(os.Getpid()), "up")
	t.Cleanup(func() {
		run("down")
		left, err := command("sh", "-c", "ls -d /sys/fs/cgroup/*/step-csi-"+second+" 2>/dev/null; grep "+second+" /proc/mounts; true")
		if err != nil || left != "" {
			t.Errorf("the second cluster has left control groups or mounts: %v: %s", err, left)
		}
		if after := interfaces(t); after != before {
			t.Errorf("network interfaces:\n%s\nbefore:\n%s", after, before)
		}
	})
	_, config, _ := strings.Cut(variables, "KUBECONFIG=")
	config, _, _ = strings.Cut(config, "\n")
	if out, err := command("kubectl", "--kubeconfig", config, "get", "csidrivers,pods,namespaces", "-A", "-o", "name"); err != nil || strings.Contains(out, driverName) || strings.Contains(out, identity) || strings.Contains(out, plugin) {
		t.Errorf("the second cluster has objects of the first: %v: %s", err, out)
	}
	// A cluster keeps its version of Kubernetes.
	other := "1.34"
	if cluster.kubernetes == other {
		other = "1.37"
	}
	if _, err := tool("--name", second, "--kubernetes", other, "up"); err == nil || !strings.Contains(err.Error(), "remove it with: down") {
		t.Errorf("up with Kubernetes %s: %v", other, err)
	}
	// The second cluster's kubelet does not touch the first cluster's pods.
	p := pod{namespace: "default", name: "beside-another-cluster"}
	t.Cleanup(func() { kubectl(t, "-n", p.namespace, "delete", "pod", p.name, "--now") })
	p.start(t)
	p.files(t)
}

func interfaces(t *testing.T) string {
	t.Helper()
	out, err := command("ls", "/sys/class/net")
	must(t, err)
	return out
}
