//go:build e2e

package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"software.sslmate.com/src/go-pkcs12"
)

const keyStoreObjects = `
apiVersion: v1
kind: Secret
metadata: {name: orders-keystore, namespace: keystores}
stringData: {keystore-password: first password, other: ignored}
---
apiVersion: v1
kind: Pod
metadata: {name: given, namespace: keystores}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - {name: app, image: "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sleep, "100000"], volumeMounts: [{name: tls, mountPath: /etc/tls}]}
  volumes:
    - {name: tls, csi: {driver: csi.step-ca.io, nodePublishSecretRef: {name: orders-keystore}, volumeAttributes: {pkcs12-file: keystore.p12, pkcs12-truststore-file: truststore.p12}}}
---
apiVersion: v1
kind: Pod
metadata: {name: generated, namespace: keystores}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - {name: app, image: "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sleep, "100000"], volumeMounts: [{name: tls, mountPath: /etc/tls}]}
  volumes:
    - {name: tls, csi: {driver: csi.step-ca.io, volumeAttributes: {pkcs12-file: keystore.p12, pkcs12-truststore-file: truststore.p12}}}
---
apiVersion: v1
kind: Pod
metadata: {name: in-the-spec, namespace: keystores}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - {name: app, image: "docker.io/library/busybox:1.37", imagePullPolicy: IfNotPresent, command: [sleep, "100000"], volumeMounts: [{name: tls, mountPath: /etc/tls}]}
  volumes:
    - {name: tls, csi: {driver: csi.step-ca.io, volumeAttributes: {pkcs12-file: keystore.p12, keystore-password: changeit}}}
`

// The kubelet sends the password of the Secret that a pod names, and a new one once it has
// changed. The node plugin has no right to read the Secret.
func keyStores(t *testing.T) {
	namespace(t, "keystores", "baseline")
	must(t, applyText(keyStoreObjects))
	given, generated, inTheSpec := pod{namespace: "keystores", name: "given"}, pod{namespace: "keystores", name: "generated"}, pod{namespace: "keystores", name: "in-the-spec"}
	generated.waitReady(t)
	password, err := generated.exec("cat", "/etc/tls/keystore-password")
	must(t, err)
	must(t, generated.openStores(password))
	given.waitReady(t)
	must(t, given.openStores("first password"))
	if _, err := given.exec("test", "!", "-e", "/etc/tls/keystore-password"); err != nil {
		t.Errorf("the password of the Secret is in a file: %v", err)
	}
	leaf := given.files(t)
	kubectl(t, "-n", "keystores", "patch", "secret", "orders-keystore", "-p", `{"stringData": {"keystore-password": "second password"}}`)
	eventually(t, patience, func() error { return given.openStores("second password") })
	if !given.files(t).Equal(leaf) {
		t.Error("another password gave another certificate")
	}
	inTheSpec.waitEvent(t, patience, "everybody who can read the pod could read the password")
	account := kubectl(t, "-n", plugin, "get", "daemonset", "step-csi", "-o", "jsonpath={.spec.template.spec.serviceAccountName}")
	out, _ := command("kubectl", "auth", "can-i", "get", "secrets", "-n", "keystores", "--as", "system:serviceaccount:"+plugin+":"+account)
	if strings.TrimSpace(out) != "no" { // the exit status of "no" is 1
		t.Errorf("may the node plugin read Secrets? %s", out)
	}
}

// openStores opens the key store and the trust store in the pod.
func (p pod) openStores(password string) error {
	store, err := p.binary("/etc/tls/keystore.p12")
	if err != nil {
		return err
	}
	_, leaf, _, err := pkcs12.DecodeChain(store, password)
	if err != nil {
		return err
	}
	mounted, err := p.tryFiles()
	if err == nil && !leaf.Equal(mounted) {
		err = errors.New("the key store has another certificate than tls.crt")
	}
	if err != nil {
		return err
	}
	store, err = p.binary("/etc/tls/truststore.p12")
	if err != nil {
		return err
	}
	roots, err := pkcs12.DecodeTrustStore(store, password)
	if err == nil && len(roots) == 0 {
		err = fmt.Errorf("the trust store of %s is empty", p.name)
	}
	return err
}

// binary returns a file of the pod.
func (p pod) binary(path string) ([]byte, error) {
	text, err := p.exec("base64", "-w0", path)
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(text)
}
