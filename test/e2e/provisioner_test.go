//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recommendedProvisioner runs the commands of docs/provisioner.md, and installs the
// plugin with its values. The holder of a certificate cannot renew it at step-ca, with
// that provisioner or with the one of deploy/step-ca.
func recommendedProvisioner(t *testing.T) {
	const n, document = "provisioner", "docs/provisioner.md"
	namespace(t, n, "baseline")
	withoutHolderRenewal(t, pod{namespace: n, name: "deploy", attributes: map[string]string{"service-names": "deploy"}})

	atTheCA := func(script string) string {
		t.Helper()
		return kubectl(t, "-n", identity, "exec", "deployment/step-ca", "--", "sh", "-euc", "cd /tmp\n"+script)
	}
	commands, err := block(document, "## Create the provisioner", "sh")
	must(t, err)
	t.Cleanup(func() {
		must(t, installPlugin())
		atTheCA("step ca provisioner remove step-csi && kill -HUP 1")
		kubectl(t, "-n", plugin, "delete", "secret", "ca-provisioner", "--ignore-not-found")
	})
	atTheCA(commands)
	atTheCA("kill -HUP 1")

	directory := t.TempDir()
	must(t, os.WriteFile(filepath.Join(directory, "step-csi.password"), []byte(atTheCA("cat step-csi.password")), 0o600))
	_, err = shellBlock(document, "## Use it", func(script string) string {
		return "cd " + directory + "\n" + script
	})
	must(t, err)
	values, err := block(document, "## Use it", "yaml")
	must(t, err)
	file := filepath.Join(directory, "values.yaml")
	must(t, os.WriteFile(file, []byte(values), 0o600))
	must(t, installPlugin("-f", file))
	withoutHolderRenewal(t, pod{namespace: n, name: "recommended", attributes: map[string]string{"service-names": "recommended"}})
}

// withoutHolderRenewal starts the pod, and checks that step-ca refuses to renew its
// certificate, and that the authority has nothing to warn about.
func withoutHolderRenewal(t *testing.T, p pod) {
	t.Helper()
	p.start(t)
	if leaf := p.files(t); leaf.IsCA {
		t.Error("the certificate is a CA certificate")
	}
	for _, file := range []string{"tls.crt", "tls.key"} {
		content, err := p.exec("cat", "/etc/tls/"+file)
		must(t, err)
		_, err = commandWith([]byte(content), "kubectl", "-n", identity, "exec", "-i", "deployment/step-ca", "--", "sh", "-c", "cat > /tmp/"+file)
		must(t, err)
	}
	for _, renewal := range []string{"renew", "rekey"} {
		out, err := command("kubectl", "-n", identity, "exec", "deployment/step-ca", "--", "sh", "-euc",
			"step ca "+renewal+" /tmp/tls.crt /tmp/tls.key --force --ca-url https://step-ca.flexstack-identity.svc.cluster.local:9000 --root /home/step/certs/root_ca.crt 2>&1")
		if err == nil || !strings.Contains(out, "lacked necessary authorization") {
			t.Errorf("step ca %s: %v: %s", renewal, err, out)
		}
	}
	eventually(t, patience, func() error {
		names, err := command("kubectl", "-n", plugin, "get", "pods", "-l", "app.kubernetes.io/name=step-csi-ra", "-o", "jsonpath={.items[*].metadata.name}")
		for _, name := range strings.Fields(names) { // those of an earlier installation may be ending
			var text string
			text, err = command("kubectl", "get", "--raw", "/api/v1/namespaces/"+plugin+"/pods/"+name+":9808/proxy/metrics")
			if err == nil && !strings.Contains(text, `step_csi_issuer_renewal_allowed{issuer="default"} 0`) {
				err = fmt.Errorf("the metrics of %s:\n%s", name, text)
			}
			if err != nil {
				break
			}
		}
		return err
	})
}

// block returns the first block in the language after a mark in a document.
func block(document, mark, language string) (string, error) {
	text, err := os.ReadFile(document)
	if err != nil {
		return "", err
	}
	_, rest, marked := strings.Cut(string(text), mark)
	_, found, opened := strings.Cut(rest, "```"+language+"\n")
	found, _, closed := strings.Cut(found, "\n```")
	if !marked || !opened || !closed {
		return "", fmt.Errorf("%s has no block of %s after %q", document, language, mark)
	}
	return found, nil
}
