//go:build e2e

package e2e

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// patience is for what takes seconds on a quiet machine. The kubelet waits for up to two
// minutes before it retries a mount.
const patience = 5 * time.Minute

// kubectl fails the test if kubectl fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command("kubectl", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func node(t *testing.T, script string) string {
	t.Helper()
	out, err := tool("exec", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually retries until try succeeds, and fails the test after the limit.
func eventually(t *testing.T, limit time.Duration, try func() error) {
	t.Helper()
	err := soon(limit, try)
	if err != nil {
		t.Fatal(err)
	}
}

func soon(limit time.Duration, try func() error) error {
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		err := try()
		if err == nil {
			return nil
		}
		if time.Since(begin) > limit {
			return fmt.Errorf("after %s: %w", limit, err)
		}
	}
}

// namespace makes a namespace for the test, with a Pod Security level.
func namespace(t *testing.T, name, level string) {
	t.Helper()
	must(t, applyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": %q, "labels": {"pod-security.kubernetes.io/enforce": %q}}}`, name, level)))
	t.Cleanup(func() {
		if _, err := command("kubectl", "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
}

// pod is a pod of busybox with a volume at /etc/tls.
type pod struct {
	namespace, name string
	attributes      map[string]string
	script          string // the command; the pod sleeps if empty
	security        string // JSON of the securityContext
	account         string // the service account
	driver          string // by default, driverName
	mountReadOnly   bool
}

// nonRootSecurity is the securityContext of a pod that the Pod Security level restricted
// allows.
const nonRootSecurity = `{"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}`

// short returns the attributes of a certificate that is renewed after about 12 s, and is
// valid for longer than anything is down in the scenarios that use it.
func short(more ...string) map[string]string {
	attributes := map[string]string{"duration": "2m", "renew-before": "1m48s"}
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	return attributes
}

func (p pod) manifest() string {
	if p.script == "" {
		p.script = "exec sleep 100000"
	}
	if p.security == "" {
		p.security = "{}"
	}
	script, _ := json.Marshal(p.script)
	attributes, _ := json.Marshal(p.attributes)
	return fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": %q}, "spec": {
		"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "serviceAccountName": %q, "securityContext": %s,
		"containers": [{"name": "app", "image": "docker.io/library/busybox:1.37", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", %s],
			"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}},
			"volumeMounts": [{"name": "tls", "mountPath": "/etc/tls", "readOnly": %t}]}],
		"volumes": [{"name": "tls", "csi": {"driver": %q, "readOnly": true, "volumeAttributes": %s}}]}}`,
		p.name, p.namespace, p.account, p.security, script, p.mountReadOnly, cmp.Or(p.driver, driverName), attributes)
}

// start creates the pod and waits until it runs.
func (p pod) start(t *testing.T) {
	t.Helper()
	must(t, applyText(p.manifest()))
	p.waitReady(t)
}

func (p pod) waitReady(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", p.namespace, "wait", "--for=condition=Ready", "pod/"+p.name, "--timeout=5m")
}

func (p pod) exec(args ...string) (string, error) {
	return command("kubectl", append([]string{"-n", p.namespace, "exec", p.name, "--"}, args...)...)
}

func (p pod) uid(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", p.namespace, "get", "pod", p.name, "-o", "jsonpath={.metadata.uid}")
}

// files reads the volume inside the pod, and verifies the certificate.
func (p pod) files(t *testing.T) *x509.Certificate {
	t.Helper()
	leaf, err := p.tryFiles()
	must(t, err)
	return leaf
}

func (p pod) tryFiles() (*x509.Certificate, error) {
	out, err := p.exec("sh", "-c", "cd /etc/tls/..data/ && cat tls.crt && echo === && cat tls.key && echo === && cat ca.crt")
	if err != nil {
		return nil, err
	}
	parts := strings.Split(out, "===")
	if len(parts) != 3 {
		return nil, fmt.Errorf("got %d files, want 3", len(parts))
	}
	pair, err := tls.X509KeyPair([]byte(parts[0]), []byte(parts[1]))
	if err != nil {
		return nil, err
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(parts[2])) {
		return nil, errors.New("ca.crt contains no certificate")
	}
	intermediates.AppendCertsFromPEM([]byte(parts[0]))
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return pair.Leaf, err
}

// waitRotation waits until the pod sees a certificate other than old.
func (p pod) waitRotation(t *testing.T, old *x509.Certificate, limit time.Duration) *x509.Certificate {
	t.Helper()
	var leaf *x509.Certificate
	eventually(t, limit, func() (err error) {
		if leaf, err = p.tryFiles(); err == nil && leaf.SerialNumber.Cmp(old.SerialNumber) == 0 {
			err = fmt.Errorf("%s still has the certificate with the serial number %x", p.name, old.SerialNumber)
		}
		return err
	})
	return leaf
}

func (p pod) restarts(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", p.namespace, "get", "pod", p.name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
}

// waitEvent waits until the pod's events in `kubectl describe pod` contain all the
// words.
func (p pod) waitEvent(t *testing.T, limit time.Duration, words ...string) {
	t.Helper()
	must(t, p.hasEvent(limit, words...))
}

func (p pod) hasEvent(limit time.Duration, words ...string) error {
	return soon(limit, func() error {
		out, err := command("kubectl", "-n", p.namespace, "describe", "pod", p.name)
		if err != nil {
			return err
		}
		_, events, _ := strings.Cut(out, "Events:")
		for _, word := range words {
			if !strings.Contains(events, word) {
				return fmt.Errorf("no event contains %q; the events are:\n%s", word, events)
			}
		}
		return nil
	})
}

// noVolumes waits until no volume is mounted.
func noVolumes(t *testing.T, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func() error {
		mounts, err := tool("exec", "sh", "-c", "grep 'tmpfs "+driverName+"' /proc/self/mountinfo; true")
		if err == nil && mounts != "" {
			err = fmt.Errorf("still mounted:\n%s", mounts)
		}
		return err
	})
}

// onNode returns the directories and mounts of a pod on the node.
func onNode(uid string) (string, error) {
	return tool("exec", "sh", "-c", fmt.Sprintf(`ls -d /var/lib/kubelet/pods/%s 2>/dev/null; grep %s /proc/self/mountinfo; true`, uid, uid))
}

func gone(uid string) error {
	left, err := onNode(uid)
	if err == nil && left != "" {
		err = fmt.Errorf("left on the node:\n%s", left)
	}
	return err
}

// witness starts a pod that reads its files continuously, and logs when it cannot.
func witness(t *testing.T, name string) pod {
	t.Helper()
	namespace(t, name, "baseline")
	return witnessIn(t, name, "witness")
}

func witnessIn(t *testing.T, namespace, name string) pod {
	t.Helper()
	p := pod{namespace: namespace, name: name, mountReadOnly: true, attributes: short("service-names", name), script: `
		while true; do
			for f in tls.crt tls.key ca.crt; do [ -s /etc/tls/$f ] && cat /etc/tls/$f >/dev/null || echo "LOST $f"; done
			sleep 0.1
		done`}
	p.start(t)
	return p
}

// sawAll checks that a witness never missed a file.
func sawAll(t *testing.T, p pod) {
	t.Helper()
	if log := kubectl(t, "-n", p.namespace, "logs", p.name); log != "" {
		t.Errorf("the pod missed files:\n%s", log[:min(len(log), 1000)])
	}
	if restarts := p.restarts(t); restarts != "0" {
		t.Errorf("the pod was restarted %s times", restarts)
	}
}

// killPlugin kills the plugin's process by SIGKILL.
func killPlugin(t *testing.T) {
	t.Helper()
	node(t, `for d in /proc/[0-9]*; do case "$(tr '\0' ' ' < $d/cmdline)" in /step-csi\ node*) kill -9 ${d#/proc/}; exit 0;; esac; done; exit 1`)
}

func waitPlugin(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", plugin, "rollout", "status", "daemonset/step-csi", "--timeout=5m")
}
