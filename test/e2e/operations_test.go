//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// page is a document of docs/operations. A scenario runs its blocks as they are written,
// but for the names of pods and files, and the image, which is that of this commit.
type page struct {
	document, directory string
	blocks              []codeBlock
	used                []bool
	changes             []string // files with changes of values.yaml, in their order
}

// openPage opens a page for a scenario, which must use all its blocks: see isRun. The
// page's values.yaml has the values of the release.
func openPage(t *testing.T, name string) *page {
	t.Helper()
	p := &page{document: operations + "/" + name, directory: t.TempDir()}
	var err error
	p.blocks, err = codeBlocks(p.document)
	must(t, err)
	p.used = make([]bool, len(p.blocks))
	values, err := command("helm", "get", "values", "step-csi", "-n", plugin, "-o", "yaml")
	must(t, err)
	p.write(t, "values.yaml", values)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		for i, b := range p.blocks {
			if b.runs() && isRun(p.document, b) && !p.used[i] {
				t.Errorf("the scenario does not run this block of %s:\n%s", p.document, b.text)
			}
		}
	})
	return p
}

// write writes a file of the directory that the page's commands run in.
func (p *page) write(t *testing.T, name, content string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(p.directory, name), []byte(content), 0o600))
}

// read reads such a file.
func (p *page) read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(p.directory, name))
	must(t, err)
	return string(content)
}

// take returns the first block with the text that was not used yet. Each pair of replace is
// a text of the block, and what the scenario has in its place.
func (p *page) take(t *testing.T, language, contains string, replace []string) string {
	t.Helper()
	for i, b := range p.blocks {
		if p.used[i] || b.language != language || !strings.Contains(b.text, contains) {
			continue
		}
		p.used[i] = true
		for j := 0; j < len(replace); j += 2 {
			if !strings.Contains(b.text, replace[j]) {
				t.Fatalf("this block of %s does not contain %q:\n%s", p.document, replace[j], b.text)
			}
		}
		return strings.NewReplacer(replace...).Replace(b.text)
	}
	t.Fatalf("%s has no other block of %s with %q", p.document, language, contains)
	return ""
}

// script returns a block as a script for sh.
func (p *page) script(t *testing.T, contains string, replace ...string) string {
	t.Helper()
	charts, err := filepath.Abs(chart)
	must(t, err)
	values := "-f values.yaml"
	for _, name := range p.changes {
		values += " -f " + name
	}
	return "cd " + p.directory + "\n" + strings.NewReplacer(
		chart, charts, "-f values.yaml", values, "ghcr.io/flexstack/step-csi:0.1.0", pluginTag,
	).Replace(p.take(t, "sh", contains, replace))
}

// sh runs a block, and returns what it prints.
func (p *page) sh(t *testing.T, contains string, replace ...string) string {
	t.Helper()
	return shell(t, p.script(t, contains, replace...))
}

// prints runs a block until it prints all the words.
func (p *page) prints(t *testing.T, limit time.Duration, contains string, words []string, replace ...string) {
	t.Helper()
	script := p.script(t, contains, replace...)
	eventually(t, limit, func() error {
		out, err := command("sh", "-euc", script)
		for _, word := range words {
			if err == nil && !strings.Contains(out, word) {
				err = fmt.Errorf("%s: the block with %q does not print %q, but\n%s", p.document, contains, word, out)
			}
		}
		return err
	})
}

// change changes values.yaml by a block of the page.
func (p *page) change(t *testing.T, contains string, replace ...string) {
	t.Helper()
	p.changeTo(t, p.take(t, "yaml", contains, replace))
}

// changeTo changes values.yaml by values that the page leaves to its reader.
func (p *page) changeTo(t *testing.T, values string) {
	t.Helper()
	name := fmt.Sprintf("values-%d.yaml", len(p.changes)+1)
	p.write(t, name, values)
	p.changes = append(p.changes, name)
}

// shell fails the test if the script fails.
func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := command("sh", "-euc", script)
	must(t, err)
	return out
}

// atTheCA runs a script in step-ca's pod.
func atTheCA(t *testing.T, script string) string {
	t.Helper()
	return kubectl(t, "-n", identity, "exec", "deployment/step-ca", "--", "sh", "-euc", "cd /home/step\n"+script)
}

// named is the replacement of the pod's name in the pages' blocks.
func named(namespace, name string) []string {
	return []string{"namespace=default pod=my-service", "namespace=" + namespace + " pod=" + name}
}

// The pages that only look, and the page that renews: a Deployment with a volume is
// healthy, is listed, and gets other certificates.
func operate(t *testing.T) {
	const n = "operations"
	namespace(t, n, "privileged") // the debugging container has the capability SYS_PTRACE
	must(t, applyText(fmt.Sprintf(`{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "my-service", "namespace": %q}, "spec": {
		"replicas": 1, "selector": {"matchLabels": {"app": "my-service"}}, "template": {"metadata": {"labels": {"app": "my-service"}}, "spec": {
			"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
			"containers": [{"name": "app", "image": "docker.io/library/busybox:1.37", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"],
				"volumeMounts": [{"name": "tls", "mountPath": "/etc/tls"}]}],
			"volumes": [{"name": "tls", "csi": {"driver": %q, "readOnly": true, "volumeAttributes": {"service-names": "my-service"}}}]}}}}`, n, driverName)))
	current := func() pod {
		t.Helper()
		kubectl(t, "-n", n, "rollout", "status", "deployment/my-service", "--timeout=5m")
		name := kubectl(t, "-n", n, "get", "pods", "-l", "app=my-service", "--sort-by=.metadata.creationTimestamp", "-o", "jsonpath={.items[-1:].metadata.name}")
		return pod{namespace: n, name: name}
	}
	p := current()

	healthy := openPage(t, "healthy.md")
	if out := healthy.sh(t, "rollout status"); !strings.Contains(out, "verified") {
		t.Errorf("helm test does not print the certificate:\n%s", out)
	}
	readyz := healthy.script(t, "/readyz")
	eventually(t, patience, func() error { // until the pods of an earlier installation have ended
		out, err := command("sh", "-euc", readyz)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		for _, line := range lines {
			if err == nil && (len(lines) != 3 || !strings.HasPrefix(line, "pod/step-csi-") || !strings.HasSuffix(line, ": ok")) {
				err = fmt.Errorf("not healthy:\n%s", out)
			}
		}
		return err
	})
	failing := healthy.script(t, "status --failing")
	eventually(t, patience, func() error {
		out, err := command("sh", "-euc", failing)
		if err == nil && (strings.Contains(out, "see above") || strings.Contains(out, p.name)) {
			err = fmt.Errorf("failing:\n%s", out)
		}
		return err
	})
	healthy.prints(t, patience, "step_csi_(volumes_", []string{`step_csi_issuer_ready{issuer="default"} 1`, `step_csi_volumes_overdue{issuer="default",namespace="operations"} 0`})

	certificates := openPage(t, "certificates.md")
	inOne := named(n, p.name)
	certificates.prints(t, patience, "/step-csi status ||", []string{n + "/" + p.name})
	certificates.prints(t, patience, "-o wide", []string{n + "/" + p.name}, inOne...)
	if out := certificates.sh(t, "debug", inOne...); !strings.Contains(out, "my-service.operations") || !strings.Contains(out, "verified") {
		t.Errorf("the debugging container prints\n%s", out)
	}
	if out := certificates.sh(t, "openssl x509", inOne...); !strings.Contains(out, "DNS:my-service.operations") {
		t.Errorf("openssl prints\n%s", out)
	}
	certificates.prints(t, patience, "Certificate signed", []string{p.name})

	renew := openPage(t, "renew.md")
	renewed := func(how func()) {
		t.Helper()
		old := current()
		leaf := old.files(t)
		how()
		eventually(t, patience, func() error {
			now := current()
			fresh, err := now.tryFiles()
			if err == nil && (now.name == old.name || fresh.SerialNumber.Cmp(leaf.SerialNumber) == 0) {
				err = fmt.Errorf("%s still has the certificate %x of %s", now.name, leaf.SerialNumber, old.name)
			}
			return err
		})
	}
	renewed(func() { renew.sh(t, "delete pod", named(n, p.name)...) })
	renewed(func() {
		renew.sh(t, "workload=deployment/my-service", "namespace=default", "namespace="+n)
	})
	// Other scenarios' Deployments may be on their way out.
	list := renew.sh(t, "> workloads", "grep -F csi.step-ca.io", "grep -F csi.step-ca.io | grep '^"+n+" '")
	if want := n + " Deployment/my-service " + driverName; strings.TrimSpace(list) != want {
		t.Errorf("the workloads are %q, want %q", list, want)
	}
	since := time.Now()
	renewed(func() { renew.sh(t, "done < workloads") })
	p = current()
	if out := renew.sh(t, "get pods -A"); !strings.Contains(out, n+" "+p.name+" "+driverName) {
		t.Errorf("the pods with volumes are\n%s", out)
	}
	older := renew.script(t, "awk", `since="${since:?}"`, fmt.Sprintf("since=%d", since.Unix()))
	eventually(t, patience, func() error { // until the pod before has ended
		out, err := command("sh", "-euc", older)
		if err == nil && (strings.Contains(out, `namespace="`+n+`"`) || !strings.Contains(out, "with a certificate from before")) {
			err = fmt.Errorf("there are older certificates:\n%s", out)
		}
		return err
	})
}

// whyNotRenewed runs the page for a pod whose renewals fail, because the CA is down.
func whyNotRenewed(t *testing.T, p pod) {
	t.Helper()
	why := openPage(t, "not-renewed.md")
	why.prints(t, patience, "status --pod", []string{p.name, "step-ca.flexstack-identity.svc.cluster.local:9000"}, named(p.namespace, p.name)...)
	why.sh(t, "get events", named(p.namespace, p.name)...)
	why.sh(t, "name=step-csi-ra", named(p.namespace, p.name)...)
}

// addCA adds an issuer by the page, and removes it. Its CA is that of the cluster, with
// another provisioner.
func addCA(t *testing.T) {
	const n = "add-ca"
	namespace(t, n, "baseline")
	add := openPage(t, "add-ca.md")
	add.write(t, "edge_root_ca.crt", kubectl(t, "-n", plugin, "get", "configmap", "step-csi-ca-root", "-o", `jsonpath={.data.root_ca\.crt}`))
	add.write(t, "edge.password", "other-password")
	add.sh(t, "create configmap edge-ca")
	t.Cleanup(func() {
		must(t, installPlugin())
		kubectl(t, "-n", plugin, "delete", "--ignore-not-found", "configmap/edge-ca", "secret/edge-ca-provisioner")
	})
	add.change(t, "edge:", "https://edge-ca.example.com:9000", "https://step-ca.flexstack-identity.svc.cluster.local:9000", "      name: edge\n", "      name: other\n")
	add.sh(t, "helm upgrade")
	ready := add.script(t, "/readyz")
	eventually(t, patience, func() error {
		out, err := command("sh", "-euc", ready)
		if err == nil && (strings.Contains(out, "edge") || !strings.Contains(out, ": ok")) {
			err = fmt.Errorf("the issuer edge does not work:\n%s", out)
		}
		return err
	})
	if out := add.sh(t, "try-edge"); !strings.Contains(out, "verified") {
		t.Errorf("the pod prints\n%s", out)
	}
	p := pod{namespace: n, name: "uses-edge", attributes: map[string]string{"issuer": "edge"}}
	p.start(t)
	if out := add.sh(t, "no pod uses the issuer edge"); !strings.Contains(out, n+" uses-edge "+driverName+" edge") {
		t.Errorf("the pods of the issuer are\n%s", out)
	}
	kubectl(t, "-n", n, "delete", "pod", p.name, "--now")
	add.changes = nil
	add.sh(t, "delete configmap/edge-ca")
	kubectl(t, "-n", plugin, "rollout", "status", "deployment/step-csi-ra", "--timeout=5m")
}

// passwords rotates the provisioner's password by the page: first with a gap, without a
// restart of the registration authority, and then by a second provisioner.
func passwords(t *testing.T) {
	p := witness(t, "password")
	replicas := func() string {
		return kubectl(t, "-n", plugin, "get", "pods", "-l", "app.kubernetes.io/name=step-csi-ra", "-o", "jsonpath={.items[*].metadata.name}")
	}
	eventually(t, patience, func() error { // until the pods of an earlier installation have ended
		if names := replicas(); strings.Count(names, " ") != 1 {
			return fmt.Errorf("the authority does not have two pods: %s", names)
		}
		return nil
	})
	// The scenarios use short lifetimes.
	limits := []string{"--disable-renewal=true", "--disable-renewal=true --x509-min-dur=5s"}
	rotate := openPage(t, "provisioner-password.md")
	before := replicas()
	rotate.sh(t, "provisioner remove admin --ca-config config/ca.json\n  step ca provisioner add", limits...)
	// The changed annotation makes the kubelet update the mounted file at once.
	kubectl(t, "-n", plugin, "annotate", "pod", "-l", "app.kubernetes.io/name=step-csi-ra", "e2e=now", "--overwrite")
	leaf := p.waitRotation(t, p.files(t), patience)
	if after := replicas(); after != before {
		t.Errorf("the authority restarted: its pods were %s and are now %s", before, after)
	}

	starts := func(name string) {
		t.Helper()
		fresh := pod{namespace: p.namespace, name: name}
		fresh.start(t)
		fresh.files(t)
	}
	t.Cleanup(func() { // the other scenarios use the provisioner admin
		atTheCA(t, `echo another-password > /tmp/password
			step ca provisioner remove admin --ca-config config/ca.json || true
			step ca provisioner add admin --create --password-file /tmp/password --x509-min-dur=5s --disable-renewal=true --ssh=false \
				--x509-template /etc/step-ca/step-csi.tpl --ca-config config/ca.json
			rm /tmp/password
			kill -HUP 1`)
		kubectl(t, "-n", plugin, "delete", "secret", "step-csi-provisioner", "--ignore-not-found")
		kubectl(t, "-n", plugin, "create", "secret", "generic", "step-csi-provisioner", "--from-literal=password=another-password")
		must(t, installPlugin())
		atTheCA(t, "step ca provisioner remove step-csi-2 --ca-config config/ca.json && kill -HUP 1")
		kubectl(t, "-n", plugin, "delete", "secret", "step-csi-provisioner-2", "--ignore-not-found")
	})
	rotate.sh(t, "provisioner add step-csi-2", limits...)
	starts("both")
	rotate.change(t, "name: step-csi-2")
	rotate.sh(t, "helm upgrade")
	starts("second")
	rotate.sh(t, "provisioner remove admin")
	starts("second-only")
	p.waitRotation(t, leaf, patience)
	sawAll(t, p)
}

// disaster replaces the CA's root at once, as after the loss of its key, and runs the other
// commands of the page. No pod is restarted.
func disaster(t *testing.T) {
	must(t, installPlugin("--set", "issuers.default.roots.refresh=2s"))
	t.Cleanup(func() { _ = installPlugin() })
	p := witness(t, "disaster")
	after := openPage(t, "disaster.md")
	after.sh(t, "FlexStack Root CA (new)")
	after.sh(t, "rollout restart")
	eventually(t, patience, func() error {
		leaf, err := p.tryFiles()
		if err == nil && leaf.Issuer.CommonName != "FlexStack Intermediate CA (new)" {
			err = fmt.Errorf("the certificate is still issued by %s", leaf.Issuer.CommonName)
		}
		return err
	})
	if roots, err := p.exec("cat", "/etc/tls/ca.crt"); err != nil || strings.Count(roots, "BEGIN CERTIFICATE") != 1 {
		t.Errorf("the pod's roots: %v\n%s", err, roots)
	}
	late := pod{namespace: p.namespace, name: "late"}
	late.start(t)
	serial := late.files(t).SerialNumber.String()

	password := kubectl(t, "-n", plugin, "get", "secret", "step-csi-provisioner", "-o", "jsonpath={.data.password}")
	kubectl(t, "-n", identity, "patch", "secret", "step-ca-secrets", "--patch", fmt.Sprintf(`{"data": {"provisioner-password": %q}}`, password))
	after.sh(t, "base64 -d > password")
	if now := kubectl(t, "-n", plugin, "get", "secret", "step-csi-provisioner", "-o", "jsonpath={.data.password}"); now != password {
		t.Error("the Secret has another password than the CA's Secret")
	}

	others := after.sh(t, "comm -13")
	if signed := after.read(t, "by-the-ca"); !strings.Contains(signed, serial) || strings.Contains(others, serial) {
		t.Errorf("the serial number %s is not among those of the CA, or is among those that step-csi did not request:\n%s\n%s", serial, signed, others)
	}

	name := kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	if out := after.sh(t, "name=step-csi-ra --field-selector", "node=worker-1", "node="+name); !strings.Contains(out, p.namespace+" late "+driverName) || !strings.Contains(out, "step-csi-ra-") {
		t.Errorf("the node has\n%s", out)
	}
	sawAll(t, p)
}
