//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/test/logs"
)

// example applies an example with short lifetimes. At the end, it checks that no
// container was restarted.
func example(t *testing.T, name string) (namespace string) {
	t.Helper()
	directory := "deploy/examples/" + name
	rendered := kubectl(t, "kustomize", directory)
	brief := strings.ReplaceAll(rendered, "volumeAttributes:\n", "volumeAttributes:\n            duration: 2m\n            renew-before: 1m48s\n")
	if brief == rendered {
		t.Fatal("the example has no volume")
	}
	brief = strings.ReplaceAll(brief, "ghcr.io/flexstack/step-csi-reload:0.1.0", reloadTag) // built from this commit
	must(t, applyText(brief))
	namespace = "example-" + name
	t.Cleanup(func() {
		restarts := kubectl(t, "-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
		if strings.Trim(restarts, "0 ") != "" {
			t.Errorf("restarts: %s", restarts)
		}
		kubectl(t, "delete", "-k", directory, "--timeout=5m")
	})
	for deployment := range strings.FieldsSeq(kubectl(t, "-n", namespace, "get", "deployments", "-o", "name")) {
		kubectl(t, "-n", namespace, "rollout", "status", deployment, "--timeout=5m")
	}
	return namespace
}

// waitLog waits for a recent log line that contains all the words.
func waitLog(t *testing.T, limit time.Duration, namespace, deployment string, words ...string) string {
	t.Helper()
	var line string
	eventually(t, limit, func() error {
		out, err := command("kubectl", "-n", namespace, "logs", "deployment/"+deployment, "--since=10s", "--all-containers")
		if err != nil {
			return err
		}
	lines:
		for candidate := range strings.Lines(out) {
			for _, word := range words {
				if !strings.Contains(candidate, word) {
					continue lines
				}
			}
			line = strings.TrimSpace(candidate)
			return nil
		}
		return fmt.Errorf("%s has logged no line with %q; its log is:\n%s", deployment, words, out)
	})
	return line
}

// changes waits until show returns a different text than at first.
func changes(t *testing.T, limit time.Duration, show func() (string, error)) {
	t.Helper()
	var first string
	eventually(t, patience, func() (err error) {
		if first, err = show(); err == nil && strings.TrimSpace(first) == "" {
			err = errors.New("the text is empty")
		}
		return err
	})
	eventually(t, limit, func() error {
		now, err := show()
		if err == nil && (now == first || strings.TrimSpace(now) == "") {
			err = fmt.Errorf("got %q, want a text that is neither empty nor %q", now, first)
		}
		return err
	})
}

// refused checks that a call fails for the given reason.
func refused(t *testing.T, namespace, deployment, reason string, call ...string) {
	t.Helper()
	out, err := command("kubectl", append([]string{"-n", namespace, "exec", "deployment/" + deployment, "--"}, call...)...)
	if err == nil || !strings.Contains(out+err.Error(), reason) {
		t.Errorf("%q: got error %v, want one with %q\n%s", call, err, reason, out)
	}
}

// since returns how often the word is in the logs of a deployment.
func since(t *testing.T, namespace, deployment, word string) int {
	t.Helper()
	return strings.Count(kubectl(t, "-n", namespace, "logs", "deployment/"+deployment, "--all-containers"), word)
}

// tooSlow matches errors of clients because the machine is busy: a call took longer than the
// client waits, or curl has read the certificate before a rotation and the key after it.
var tooSlow = regexp.MustCompile(`Client\.Timeout|deadline exceeded|i/o timeout|curl: \((28|58)\)`)

// failures returns how many calls of the deployment failed, according to its log, but for
// those that the machine was too slow for.
func failures(t *testing.T, namespace, deployment string) (count int) {
	t.Helper()
	for line := range strings.Lines(kubectl(t, "-n", namespace, "logs", "deployment/"+deployment, "--all-containers")) {
		if strings.Contains(line, "error: ") && !tooSlow.MatchString(line) {
			count++
		}
	}
	return count
}

func exampleMTLS(t *testing.T) {
	n := example(t, "mtls")
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}, {"b", "c"}, {"c", "b"}} {
		waitLog(t, patience, n, pair[0], "ok: https://"+pair[1]+".", "hello "+pair[0]+"."+n)
	}
	// b uses its new certificate: a sees another serial number.
	rotates := func() {
		changes(t, patience, func() (string, error) {
			out, err := command("kubectl", "-n", n, "logs", "deployment/a", "--tail=1")
			_, theirs, _ := strings.Cut(out, "theirs ")
			return theirs, err
		})
	}
	rotates()
	before := failures(t, n, "b")
	rotates()
	if after := failures(t, n, "b"); after != before {
		t.Errorf("calls failed during rotations:\n%s", kubectl(t, "-n", n, "logs", "deployment/b"))
	}
	// b rejects a client without a certificate, even if the client has the right roots.
	p := pod{namespace: n, name: "stranger"}
	must(t, applyText(strings.ReplaceAll(strings.ReplaceAll(p.manifest(), "docker.io/library/busybox:1.37", "docker.io/curlimages/curl:8.11.1"),
		`"securityContext": {}`, `"securityContext": {"runAsNonRoot": true, "runAsUser": 100}`)))
	p.waitReady(t)
	out, err := p.exec("curl", "--silent", "--show-error", "--cacert", "/etc/tls/ca.crt", "https://b."+n+".svc:8443/hello")
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v: %s", err, out)
	}
	if out, err := p.exec("curl", "--silent", "--show-error", "--cacert", "/etc/tls/ca.crt", "--cert", "/etc/tls/tls.crt", "--key", "/etc/tls/tls.key", "https://b."+n+".svc:8443/hello"); err != nil {
		t.Errorf("with a certificate: %v: %s", err, out)
	}
}

func exampleAPI(t *testing.T) {
	n := example(t, "api")
	client := apiClient(t, n)
	waitLog(t, patience, n, client, "ok")
	refused(t, n, client, "certificate required", "curl", "--silent", "--show-error", "--cacert", "/etc/tls/ca.crt", "https://other-service.example-api.svc:8443/health")
	changes(t, patience, func() (string, error) {
		return command("kubectl", "-n", n, "exec", "deployment/"+client, "--", "sh", "-c",
			"echo | openssl s_client -connect other-service.example-api.svc:8443 2>/dev/null | openssl x509 -noout -serial")
	})
	waitLog(t, patience, n, client, "ok")
}

// apiClient returns the name of the deployment that calls the API.
func apiClient(t *testing.T, namespace string) string {
	t.Helper()
	for name := range strings.FieldsSeq(kubectl(t, "-n", namespace, "get", "deployments", "-o", "jsonpath={.items[*].metadata.name}")) {
		if name != "other-service" {
			return name
		}
	}
	t.Fatal("the example has no client")
	return ""
}

func exampleNATS(t *testing.T) {
	n := example(t, "nats")
	waitLog(t, patience, n, "orders", "ok")
	// billing receives the messages. Its certificate maps it to a user that may only
	// subscribe.
	eventually(t, patience, func() error {
		out, err := command("kubectl", "-n", n, "logs", "deployment/billing", "--tail=20")
		if err == nil && !strings.Contains(out, "received: ") {
			err = fmt.Errorf("billing has received nothing:\n%s", out)
		}
		return err
	})
	tls := []string{"--tlscert", "/etc/nats/certs/tls.crt", "--tlskey", "/etc/nats/certs/tls.key", "--tlsca", "/etc/nats/certs/ca.crt"}
	refused(t, n, "billing", "ermissions", append(append([]string{"nats"}, tls...), "publish", "orders.new", "x")...)
	for _, server := range []string{"nats", "nats-mapped"} {
		refused(t, n, "orders", "tls", "nats", "--server", "tls://"+server+".example-nats.svc:4222", "--tlsca", "/etc/nats/certs/ca.crt", "publish", "orders.new", "x")
		// The server uses the new certificate. Its monitoring shows the expiry of the
		// served certificate.
		name := kubectl(t, "-n", n, "get", "pods", "-l", "app="+server, "-o", "jsonpath={.items[0].metadata.name}")
		changes(t, patience, func() (string, error) {
			out, err := command("kubectl", "get", "--raw", "/api/v1/namespaces/"+n+"/pods/"+name+":8222/proxy/varz")
			_, until, _ := strings.Cut(out, "tls_cert_not_after")
			return until[:min(len(until), 40)], err
		})
	}
	waitLog(t, patience, n, "orders", "ok")
}

func examplePostgreSQL(t *testing.T) {
	n := example(t, "postgresql")
	waitLog(t, patience, n, "app", "ok: app|TLS")
	refused(t, n, "app", "certificate", "env", "PGSSLCERT=/nowhere", "psql", "--no-psqlrc", "--command=select 1")
	refused(t, n, "app", "", "env", "PGUSER=postgres", "psql", "--no-psqlrc", "--command=select 1")
	changes(t, patience, func() (string, error) {
		return command("kubectl", "-n", n, "exec", "deployment/app", "--", "sh", "-c",
			"echo | openssl s_client -starttls postgres -connect postgresql.example-postgresql.svc:5432 2>/dev/null | openssl x509 -noout -serial")
	})
	waitLog(t, patience, n, "app", "ok: app|TLS")
}

func exampleNginx(t *testing.T) {
	n := example(t, "nginx")
	waitLog(t, patience, n, "client", "ok: ", "hello CN=client."+n)
	before := failures(t, n, "client")
	// The master process stays. Its workers have the new certificate.
	master := func() string { return kubectl(t, "-n", n, "exec", "deployment/nginx", "--", "cat", "/tmp/nginx.pid") }
	first := master()
	for range 2 {
		changes(t, patience, func() (string, error) {
			return command("kubectl", "-n", n, "exec", "deployment/client", "--", "sh", "-c",
				"echo | openssl s_client -connect nginx.example-nginx.svc:8443 2>/dev/null | openssl x509 -noout -serial")
		})
	}
	waitLog(t, patience, n, "nginx", logs.Reloaded)
	waitLog(t, patience, n, "client", "ok: ")
	if now := master(); now != first {
		t.Errorf("nginx was restarted: its process was %s and is now %s", first, now)
	}
	if after := failures(t, n, "client"); after != before {
		t.Errorf("calls failed during rotations:\n%s", kubectl(t, "-n", n, "logs", "deployment/client"))
	}
	refused(t, n, "client", "400", "curl", "--silent", "--show-error", "--fail", "--cacert", "/etc/tls/ca.crt", "https://nginx.example-nginx.svc:8443/")
}
