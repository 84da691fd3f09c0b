//go:build e2e

package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"
)

// shapeObjects are a pod with all kinds of containers, a pod with volumes of two issuers
// and of several formats, a pod with a subPath, a pod in its own user namespace with a
// read-only root file system, and a job.
const shapeObjects = `
apiVersion: v1
kind: Pod
metadata: {name: containers, namespace: shapes}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  initContainers:
    - {name: init, image: &image "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sh, -euc, &check "cd /etc/tls; for f in tls.crt tls.key ca.crt; do [ -s $f ]; done"], volumeMounts: &mounts [{name: tls, mountPath: /etc/tls}]}
    - {name: sidecar, restartPolicy: Always, image: *image, imagePullPolicy: IfNotPresent, command: [sleep, "100000"], volumeMounts: *mounts}
  containers:
    - {name: app, image: *image, imagePullPolicy: IfNotPresent, command: [sleep, "100000"], volumeMounts: *mounts}
  volumes:
    - {name: tls, csi: {driver: csi.step-ca.io, volumeAttributes: &short {duration: 2m, renew-before: 1m48s}}}
---
apiVersion: v1
kind: Pod
metadata: {name: volumes, namespace: shapes}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - {name: app, image: "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sleep, "100000"], volumeMounts: [{name: default, mountPath: /etc/tls}, {name: other, mountPath: /etc/other}, {name: trust, mountPath: /etc/trust}]}
  volumes:
    - {name: default, csi: {driver: csi.step-ca.io, readOnly: true, volumeAttributes: {duration: 2m, renew-before: 1m48s, bundle-file: bundle.pem, pkcs12-file: keystore.p12, jks-file: keystore.jks}}}
    - {name: other, csi: {driver: csi.step-ca.io, readOnly: true, volumeAttributes: {issuer: other, certificate-der-file: tls.der, owner-uid: "4711", privatekey-mode: "0400"}}}
    - {name: trust, csi: {driver: csi.step-ca.io, readOnly: true, volumeAttributes: {issuer: other, trust-only: "true", ca-directory: certs}}}
---
apiVersion: v1
kind: Pod
metadata: {name: sub-path, namespace: shapes}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - {name: app, image: "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sh, -c, "trap 'exit 1' TERM; while :; do sleep 1; done"], volumeMounts: [{name: tls, mountPath: /etc/tls}, {name: tls, mountPath: /sub-path.crt, subPath: tls.crt}]}
  volumes:
    - {name: tls, csi: {driver: csi.step-ca.io, volumeAttributes: {duration: 2m, renew-before: 1m48s}}}
---
apiVersion: v1
kind: Pod
metadata: {name: user-namespace, namespace: shapes}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 4711, runAsGroup: 4711, fsGroup: 4712, seccompProfile: {type: RuntimeDefault}}
  containers:
    - {name: app, image: "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sleep, "100000"], securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}, volumeMounts: [{name: tls, mountPath: /etc/tls}, {name: owned, mountPath: /etc/owned}]}
  volumes:
    - {name: tls, csi: {driver: csi.step-ca.io, readOnly: true, volumeAttributes: {duration: 2m, renew-before: 1m48s}}}
    - {name: owned, csi: {driver: csi.step-ca.io, readOnly: true, volumeAttributes: {owner-uid: "4711", privatekey-mode: "0400"}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: job, namespace: shapes}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      containers:
        - {name: app, image: "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sh, -euc, "cd /etc/tls; for f in tls.crt tls.key ca.crt; do [ -s $f ]; done"], volumeMounts: [{name: tls, mountPath: /etc/tls}]}
      volumes:
        - {name: tls, csi: {driver: csi.step-ca.io}}
`

// Pods of every shape read their files, and see them replaced.
func shapes(t *testing.T) {
	namespace(t, "shapes", "baseline")
	must(t, applyText(shapeObjects))
	shape := func(name string) pod { return pod{namespace: "shapes", name: name} }
	containers, subPath, own := shape("containers"), shape("sub-path"), shape("user-namespace")
	first := map[string]*x509.Certificate{}
	for _, p := range []pod{containers, subPath, own} {
		p.waitReady(t)
		first[p.name] = p.files(t)
	}
	attachEphemeral(t, containers)
	volumes := shape("volumes")
	differentIssuers(t, volumes)
	differentFormats(t, volumes)
	leaf, password := formats(t, volumes)
	additionalRoots(t, volumes)
	jobEnds(t)
	ownUsers(t, own)

	second := subPath.waitRotation(t, first[subPath.name], patience)
	third := subPath.waitRotation(t, second, patience)
	for _, p := range []pod{containers, own} {
		p.waitRotation(t, first[p.name], patience)
	}
	volumes.waitRotation(t, leaf, patience)
	if _, now := formats(t, volumes); now != password {
		t.Error("the password of the key stores has changed at a renewal")
	}
	for _, container := range []string{"app", "sidecar", "ephemeral"} {
		if certificateAt(t, containers, container, "/etc/tls/tls.crt").Equal(first[containers.name]) {
			t.Errorf("the container %s still sees the first certificate", container)
		}
	}
	ownUsers(t, own)

	// A subPath keeps the file that it had when the container started.
	if !certificateAt(t, subPath, "app", "/sub-path.crt").Equal(first[subPath.name]) {
		t.Error("a file at a subPath follows the rotations: docs/reload.md says that it does not")
	}
	_, _ = subPath.exec("kill", "1")
	eventually(t, patience, func() error {
		if subPath.restarts(t) != "1" {
			return errors.New("the container has not restarted")
		}
		leaf, err := tryCertificateAt(subPath, "app", "/sub-path.crt")
		if err == nil && (leaf.Equal(first[subPath.name]) || leaf.Equal(second) || leaf.NotBefore.Before(third.NotBefore)) {
			err = errors.New("the restarted container has an old file at its subPath")
		}
		return err
	})
}

// attachEphemeral adds an ephemeral container with the volume to the pod.
func attachEphemeral(t *testing.T, p pod) {
	t.Helper()
	kubectl(t, "-n", p.namespace, "patch", "pod", p.name, "--subresource=ephemeralcontainers", "--type=strategic", "--patch", `{"spec": {"ephemeralContainers": [{
		"name": "ephemeral", "image": "docker.io/library/busybox:1.37", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"],
		"volumeMounts": [{"name": "tls", "mountPath": "/etc/tls"}]}]}}`)
	eventually(t, patience, func() error {
		_, err := tryCertificateAt(p, "ephemeral", "/etc/tls/tls.crt")
		return err
	})
}

// The volumes of one pod have certificates of their own issuers. The provisioner of the
// second one has a default lifetime of an hour.
func differentIssuers(t *testing.T, p pod) {
	t.Helper()
	p.waitReady(t)
	for path, want := range map[string]time.Duration{"/etc/tls/tls.crt": 2 * time.Minute, "/etc/other/tls.crt": time.Hour} {
		leaf := certificateAt(t, p, "app", path)
		// The CA backdates certificates by a minute.
		if lifetime := leaf.NotAfter.Sub(leaf.NotBefore); lifetime < want || lifetime > want+2*time.Minute {
			t.Errorf("%s is valid for %s, want %s", path, lifetime, want)
		}
	}
}

// formats returns the certificate of the first volume, and the password of its key stores.
// It checks that all formats are of this certificate.
func formats(t *testing.T, p pod) (leaf *x509.Certificate, password string) {
	t.Helper()
	out, err := p.exec("sh", "-euc", "cd /etc/tls/..data/; for f in tls.crt bundle.pem keystore.p12 keystore.jks keystore-password; do base64 $f | tr -d '\\n'; echo; done")
	must(t, err)
	var files [][]byte
	for line := range strings.Lines(out) {
		file, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		must(t, err)
		files = append(files, file)
	}
	block, _ := pem.Decode(files[0])
	leaf, err = x509.ParseCertificate(block.Bytes)
	must(t, err)
	bundle, err := tls.X509KeyPair(files[1], files[1])
	must(t, err)
	password = string(files[4])
	_, certificate, _, err := pkcs12.DecodeChain(files[2], password)
	must(t, err)
	jks := keystore.New()
	must(t, jks.Load(bytes.NewReader(files[3]), files[4]))
	entry, err := jks.GetPrivateKeyEntry("certificate", []byte(password))
	must(t, err)
	for format, got := range map[string][]byte{
		"bundle-file": bundle.Certificate[0], "pkcs12-file": certificate.Raw, "jks-file": entry.CertificateChain[0].Content,
	} {
		if !bytes.Equal(got, leaf.Raw) {
			t.Errorf("%s has another certificate than tls.crt", format)
		}
	}
	return leaf, password
}

// differentFormats checks the formats and owners of the second and the third volume.
func differentFormats(t *testing.T, p pod) {
	t.Helper()
	out, err := p.exec("sh", "-euc", "stat -L -c '%a %u' /etc/other/tls.key; base64 /etc/other/tls.der | tr -d '\\n'; echo; ls /etc/trust; echo ===; cat /etc/trust/certs/*.0")
	must(t, err)
	lines := strings.SplitN(out, "\n", 3)
	if lines[0] != "400 4711" {
		t.Errorf("mode and owner are %q, want %q", lines[0], "400 4711")
	}
	der, err := base64.StdEncoding.DecodeString(lines[1])
	must(t, err)
	if !bytes.Equal(der, certificateAt(t, p, "app", "/etc/other/tls.crt").Raw) {
		t.Error("certificate-der-file has another certificate than tls.crt")
	}
	names, root, _ := strings.Cut(lines[2], "===\n")
	if names != "ca.crt\ncerts\n" {
		t.Errorf("the volume with trust only has the files %q", names)
	}
	if ca, err := p.exec("cat", "/etc/trust/ca.crt"); err != nil || len(root) != len(ca) {
		t.Errorf("the directory has other roots than ca.crt: %v", err)
	}
}

// The volume of a job is unmounted when the job has ended.
func jobEnds(t *testing.T) {
	t.Helper()
	kubectl(t, "-n", "shapes", "wait", "--for=condition=Complete", "job/job", "--timeout=5m")
	uid := kubectl(t, "-n", "shapes", "get", "pods", "-l", "job-name=job", "-o", "jsonpath={.items[0].metadata.uid}")
	eventually(t, patience, func() error {
		mounts, err := tool("exec", "sh", "-c", "grep "+uid+".*"+driverName+" /proc/self/mountinfo; true")
		if err == nil && mounts != "" {
			err = fmt.Errorf("still mounted:\n%s", mounts)
		}
		return err
	})
}

// The pod is in a user namespace, and its files have the modes, owners and groups that they
// have in other pods.
func ownUsers(t *testing.T, p pod) {
	t.Helper()
	out, err := p.exec("sh", "-euc", "stat -L -c '%a %u %g' /etc/tls/tls.key /etc/owned/tls.crt /etc/owned/tls.key; cat /proc/self/uid_map; grep -c PRIVATE /etc/owned/tls.key")
	must(t, err)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if got, want := strings.Join(lines[:3], ", "), "440 0 4712, 440 4711 4712, 400 4711 4712"; got != want {
		t.Errorf("modes, owners and groups are %q, want %q", got, want)
	}
	if users := strings.Fields(lines[3]); len(users) != 3 || users[0] != "0" || users[1] == "0" {
		t.Errorf("the pod has the user namespace of the node: %q", lines[3:])
	}
}

func certificateAt(t *testing.T, p pod, container, path string) *x509.Certificate {
	t.Helper()
	leaf, err := tryCertificateAt(p, container, path)
	must(t, err)
	return leaf
}

func tryCertificateAt(p pod, container, path string) (*x509.Certificate, error) {
	out, err := command("kubectl", "-n", p.namespace, "exec", p.name, "-c", container, "--", "cat", path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(out))
	if block == nil {
		return nil, fmt.Errorf("%s contains no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// Names are as long as the API server and the kubelet allow. The kubelet's log directory
// has the namespace, name and UID of a pod in one name of at most 255 bytes.
func longNames(t *testing.T) {
	ns := "long-" + strings.Repeat("n", 58)
	namespace(t, ns, "baseline")
	account := strings.Repeat(strings.Repeat("a", 62)+".", 4) + "b"
	must(t, applyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": %q, "namespace": %q}}`, account, ns)))
	service := strings.Repeat("s", 63)
	p := pod{namespace: ns, name: strings.Repeat("p", 255-len(ns)-36-2), account: account, attributes: map[string]string{"service-names": service}}
	p.start(t)
	leaf := p.files(t)
	want := service + "." + ns + ".svc.cluster.local"
	if leaf.VerifyHostname(want) != nil {
		t.Errorf("the certificate is for %q", leaf.DNSNames)
	}
	if id := "spiffe://cluster.local/ns/" + ns + "/sa/" + account; len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
		t.Errorf("got the URIs %s", leaf.URIs)
	}
}
