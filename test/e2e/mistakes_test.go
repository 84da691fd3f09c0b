//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// mistakesNamespace has releases of the chart with mistakes of administrators.
const mistakesNamespace = "mistakes"

// aRelease is a release of the chart in mistakesNamespace, with a driver name of its own, so
// that it does not disturb the others.
type aRelease struct {
	name   string
	values []string // in the form of helm's --set
}

func (r aRelease) driver() string { return r.name + ".example.com" }

// upgrade installs or upgrades the release, with values beside its own, and returns what
// Helm prints.
func (r aRelease) upgrade(values ...string) (string, error) {
	args := []string{"upgrade", "--install", r.name, chart, "-n", mistakesNamespace, "-f", guideFile, "--timeout=5m",
		"--set", "image.tag=dev,hooks.timeoutSeconds=240,ra.replicas=1,ra.terminationGracePeriodSeconds=2,policy.allowShortNames=false,driverName=" + r.driver()}
	for _, value := range append(r.values, values...) {
		args = append(args, "--set", value)
	}
	return command("helm", args...)
}

// uninstallAll removes the releases, without the check whether pods have volumes.
func uninstallAll(t *testing.T, names ...string) {
	t.Helper()
	if _, err := command("helm", append([]string{"-n", mistakesNamespace, "uninstall", "--ignore-not-found", "--no-hooks", "--timeout=5m"}, names...)...); err != nil {
		t.Error(err)
	}
}

// mistakes makes the mistakes of administrators and of the authors of pods that a new user
// made. For each, the sentence that names what to change is where people look: in what Helm
// prints, or in the events of the pod.
func mistakes(t *testing.T) {
	namespace(t, mistakesNamespace, "privileged")
	copyCA(t, mistakesNamespace)
	for _, s := range []scenario{
		{"helm", helmRefuses},
		{"ca", caMistakes},
		{"node", nodeMistakes},
		{"pod", podMistakes},
	} {
		begin := time.Now()
		s.run(t)
		fmt.Printf("    mistakes/%s: %.1f s\n", s.name, time.Since(begin).Seconds())
	}
}

// copyCA copies the CA's root and the provisioner's password into the namespace, as the
// README does.
func copyCA(t *testing.T, namespace string) {
	t.Helper()
	for _, object := range []string{"configmap/step-csi-ca-root", "secret/step-csi-provisioner"} {
		var copied map[string]any
		must(t, json.Unmarshal([]byte(kubectl(t, "-n", plugin, "get", object, "-o", "json")), &copied))
		copied["metadata"] = map[string]string{"name": strings.Split(object, "/")[1], "namespace": namespace}
		manifest, err := json.Marshal(copied)
		must(t, err)
		must(t, applyText(string(manifest)))
	}
}

// helmRefuses makes mistakes that Helm itself refuses, in the chart or in the hook that
// checks the configuration.
func helmRefuses(t *testing.T) {
	must(t, applyText(`{"apiVersion": "v1", "kind": "List", "items": [
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "empty-root", "namespace": "mistakes"}, "data": {"root_ca.crt": ""}},
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "no-root", "namespace": "mistakes"}, "data": {"root_ca.crt": "not a certificate"}}]}`))
	var all sync.WaitGroup
	slots := make(chan struct{}, 4)
	for name, test := range map[string]struct {
		values []string
		words  []string
	}{
		"short-fingerprint": {[]string{"issuers.default.fingerprint=84a06f1a9c0b8f1c"}, []string{"issuers.default.fingerprint", "SHA-256"}},
		"http":              {[]string{"issuers.default.url=http://step-ca.flexstack-identity.svc:9000"}, []string{"issuers.default.url", "https://"}},
		"typo":              {[]string{"issuers.default.urll=https://step-ca.flexstack-identity.svc:9000"}, []string{"urll"}},
		"max":               {[]string{"issuers.default.duration.default=24h,issuers.default.duration.max=1h"}, []string{"issuers.default.duration.default", "24h", "1h"}},
		"cel":               {[]string{`policy.validations[0].expression=request.dnsNames.all(n\, n.endswith('x'))`}, []string{"undeclared reference to 'endswith'", "did you mean 'endsWith'?"}},
		"no-key":            {[]string{"issuers.default.caBundle.key=ca.crt"}, []string{"there is no key ca.crt in the ConfigMap step-csi-ca-root of the namespace mistakes", "issuers.default.caBundle"}},
		"no-object":         {[]string{"issuers.default.caBundle.configMap=step-certificates-certs"}, []string{"there is no key root_ca.crt in the ConfigMap step-certificates-certs of the namespace mistakes", "issuers.default.caBundle"}},
		"no-secret":         {[]string{"issuers.default.provisioner.passwordSecret.name=absent"}, []string{"there is no key password in the Secret absent of the namespace mistakes", "issuers.default.provisioner.passwordSecret"}},
		"empty-root":        {[]string{"issuers.default.caBundle.configMap=empty-root"}, []string{"issuers.default.caBundleFile", "empty"}},
		"no-root":           {[]string{"issuers.default.caBundle.configMap=no-root"}, []string{"issuers.default.caBundleFile", "ca.crt"}},
		"taken":             {[]string{"driverName=" + driverName}, []string{driverName, "driverName"}},
	} {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			defer uninstallAll(t, name)
			out, err := aRelease{name, test.values}.upgrade()
			if err == nil {
				t.Errorf("%s: helm installed the release", name)
				return
			}
			said := out + err.Error()
			for _, word := range test.words {
				if !strings.Contains(said, word) {
					t.Errorf("%s: helm does not say %q:\n%s", name, word, said)
				}
			}
		})
	}
	all.Wait()
	// Without the level privileged, the API server would admit none of the plugin's pods.
	namespace(t, "mistakes-baseline", "baseline")
	if out, err := command("helm", "install", "level", chart, "-n", "mistakes-baseline", "--set", "driverName=level.example.com"); err == nil || !strings.Contains(err.Error(), "pod-security.kubernetes.io/enforce=privileged") {
		t.Errorf("in a namespace with the level baseline: %v\n%s", err, out)
	}
	// A section without values has its defaults.
	if _, err := (aRelease{"null", []string{"ra.podDisruptionBudget=null,networkPolicy=null,renewal=null"}}).upgrade("kubeletDir=/var/lib/kubelet/"); err != nil {
		t.Error(err)
	}
	uninstallAll(t, "null")
}

// caMistakes makes mistakes that only the CA can show. The events of the pod that waits have
// the cause, although the registration authority is not ready.
func caMistakes(t *testing.T) {
	must(t, applyText(`{"apiVersion": "v1", "kind": "List", "items": [
		{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong-password", "namespace": "mistakes"}, "stringData": {"password": "wrong"}},
		{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ca-down", "namespace": "mistakes"}, "spec": {"ports": [{"port": 9000}], "selector": {"app": "none"}}}]}`))
	const passwordSentence = `the password does not open the key of provisioner "admin"`
	tests := map[string]struct {
		values []string
		words  []string
	}{
		"password":    {[]string{"issuers.default.provisioner.passwordSecret.name=wrong-password"}, []string{passwordSentence, "passwordSecret"}},
		"fingerprint": {[]string{"issuers.default.fingerprint=" + strings.Repeat("ab", 32)}, []string{" has no root with the fingerprint abab", "step certificate fingerprint"}},
		"host":        {[]string{"issuers.default.url=https://step-caa.flexstack-identity.svc.cluster.local:9000"}, []string{"CA https://step-caa.flexstack-identity.svc.cluster.local:9000", "no such host"}},
		"port":        {[]string{"issuers.default.url=https://step-ca.flexstack-identity.svc.cluster.local"}, []string{"CA https://step-ca.flexstack-identity.svc.cluster.local", "9000"}},
		"server":      {[]string{"issuers.default.url=https://kubernetes.default.svc"}, []string{"CA https://kubernetes.default.svc", "fingerprint", "caBundle"}},
		"down":        {[]string{"issuers.default.url=https://ca-down.mistakes.svc.cluster.local:9000"}, []string{"CA https://ca-down.mistakes.svc.cluster.local:9000", "connection refused"}},
		"provisioner": {[]string{"issuers.default.provisioner.name=Admin"}, []string{` has no JWK provisioner "Admin"`, `"admin"`}},
	}
	var all sync.WaitGroup
	for name, test := range tests {
		all.Go(func() {
			r := aRelease{name, test.values}
			if _, err := r.upgrade(); err != nil {
				t.Error(err)
				return
			}
			p := pod{namespace: mistakesNamespace, name: name, driver: r.driver(), security: nonRootSecurity}
			if err := applyText(p.manifest()); err != nil {
				t.Error(err)
				return
			}
			begin := time.Now()
			if err := p.hasEvent(patience, test.words...); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			fmt.Printf("    mistakes/%s: %.1f s until the pod's event has the cause\n", name, time.Since(begin).Seconds())
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	// The pod starts when the mistake is corrected, without another step.
	corrected := aRelease{"password", nil}
	_, err := corrected.upgrade()
	must(t, err)
	p := pod{namespace: mistakesNamespace, name: "password", driver: corrected.driver()}
	p.waitReady(t)
	p.files(t)
	short := pod{namespace: mistakesNamespace, name: "short-name", driver: corrected.driver(), attributes: map[string]string{"dns-names": "postgres"}}
	must(t, applyText(short.manifest()))
	short.waitEvent(t, patience, "DNS name postgres is not allowed", "policy.allowShortNames", "administrator")
	kubectl(t, "-n", mistakesNamespace, "delete", "pod", short.name, "--now")
	scaledToZero(t, corrected)
	names := slices.Collect(maps.Keys(tests))
	kubectl(t, append([]string{"-n", mistakesNamespace, "delete", "pod", "--now"}, names...)...)
	uninstallAll(t, names...)
}

// scaledToZero stops the registration authority of the release. A new pod's events say so.
func scaledToZero(t *testing.T, r aRelease) {
	t.Helper()
	kubectl(t, "-n", mistakesNamespace, "scale", "deployment", r.name+"-step-csi-ra", "--replicas=0")
	kubectl(t, "-n", mistakesNamespace, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=step-csi-ra,app.kubernetes.io/instance="+r.name, "--timeout=5m")
	p := pod{namespace: mistakesNamespace, name: "no-authority", driver: r.driver()}
	must(t, applyText(p.manifest()))
	p.waitEvent(t, patience, "no pod of the registration authority", "kubectl -n mistakes get pods")
	kubectl(t, "-n", mistakesNamespace, "delete", "pod", p.name, "--now")
}

// nodeMistakes makes mistakes that concern the nodes and upgrades.
func nodeMistakes(t *testing.T) {
	// A directory that exists, but is not that of the kubelet: the plugin is not ready, and
	// says what to check.
	node(t, "mkdir -p /var/lib/other/pods /var/lib/other/plugins /var/lib/other/plugins_registry")
	other := aRelease{"other-directory", []string{"kubeletDir=/var/lib/other"}}
	_, err := other.upgrade()
	must(t, err)
	absent := aRelease{"no-directory", []string{"kubeletDir=/var/lib/absent"}}
	_, err = absent.upgrade()
	must(t, err)
	eventually(t, patience, func() error {
		out, err := command("kubectl", "-n", mistakesNamespace, "describe", "pods", "--show-events", "-l", "app.kubernetes.io/instance="+absent.name)
		if err == nil && !strings.Contains(out, "/var/lib/absent/pods is not a directory") {
			err = fmt.Errorf("the events of the plugin's pod do not name the directory:\n%s", out)
		}
		return err
	})
	eventually(t, patience, func() error {
		out, err := command("kubectl", "-n", mistakesNamespace, "logs", "-l", "app.kubernetes.io/name=step-csi,app.kubernetes.io/instance="+other.name, "--tail=-1")
		if err == nil && !strings.Contains(out, "kubeletDir") {
			err = fmt.Errorf("the log does not name kubeletDir:\n%s", out)
		}
		return err
	})
	if ready := kubectl(t, "-n", mistakesNamespace, "get", "daemonset", other.name+"-step-csi", "-o", "jsonpath={.status.numberReady}"); ready != "0" {
		t.Errorf("%s of the plugin's pods are ready, although the kubelet has not registered it", ready)
	}
	uninstallAll(t, other.name, absent.name)

	// An upgrade that fails does not take the registration authority away: a pod of the
	// version before that is replaced starts with its own configuration.
	r := aRelease{name: "changes"}
	_, err = r.upgrade("issuers.edge.url=https://step-ca.flexstack-identity.svc.cluster.local:9000,issuers.edge.caBundle.configMap=step-csi-ca-root,issuers.edge.caBundle.key=root_ca.crt",
		"issuers.edge.provisioner.type=jwk,issuers.edge.provisioner.name=admin,issuers.edge.provisioner.passwordSecret.name=step-csi-provisioner,issuers.edge.provisioner.passwordSecret.key=password")
	must(t, err)
	removed := pod{namespace: mistakesNamespace, name: "removed", driver: r.driver(), attributes: map[string]string{"issuer": "edge"}}
	removed.start(t)
	_, err = r.upgrade(`policy.validations[0].expression=request.dnsNames.all(n\, n.endswith('x'))`, "checkConfig.enabled=false")
	must(t, err)
	authority := []string{"-n", mistakesNamespace, "-l", "app.kubernetes.io/name=step-csi-ra,app.kubernetes.io/instance=" + r.name}
	eventually(t, patience, func() error {
		out, err := command("kubectl", append([]string{"describe", "pods"}, authority...)...)
		if err == nil && !strings.Contains(out, "did you mean 'endsWith'?") {
			err = fmt.Errorf("the description of the new pod does not say why it stops:\n%s", out)
		}
		return err
	})
	kubectl(t, append([]string{"delete", "pods"}, authority...)...)
	p := pod{namespace: mistakesNamespace, name: "during", driver: r.driver()}
	p.start(t)
	p.files(t)

	// An issuer was removed while the pod has its certificate: the pod's events say so.
	_, err = r.upgrade()
	must(t, err)
	removed.waitEvent(t, patience, "IssuerRemoved", `"edge" is not an issuer`)

	// Another driver name would leave the volumes without renewals.
	if out, err := r.upgrade("driverName=renamed.example.com"); err == nil || !strings.Contains(err.Error(), "driverName") {
		t.Errorf("a changed driver name: %v\n%s", err, out)
	}
	// Pods with volumes keep the plugin installed.
	if out, err := command("helm", "-n", mistakesNamespace, "uninstall", r.name, "--timeout=5m"); err == nil || !strings.Contains(out+err.Error(), mistakesNamespace+"/during") {
		t.Errorf("uninstalled while pods have volumes: %v\n%s", err, out)
	}
	kubectl(t, "-n", mistakesNamespace, "delete", "pod", p.name, removed.name, "--now")
	uninstallAll(t, r.name)
}

// podMistakes makes the mistakes of the authors of pods.
func podMistakes(t *testing.T) {
	const n = "mistakes-pod"
	namespace(t, n, "baseline")
	tests := map[string]struct {
		attributes map[string]string
		words      []string
	}{
		"unknown":      {map[string]string{"service-name": "x"}, []string{`"service-name" is not a volume attribute; service-names is`}},
		"cert-manager": {map[string]string{"csi.cert-manager.io/dns-names": "x", "csi.cert-manager.io/issuer-name": "x"}, []string{"write dns-names", "write issuer"}},
		"foreign":      {map[string]string{"dns-names": "my-service.payments.svc"}, []string{"my-service.payments.svc is not allowed", "policy.validations"}},
		"ip":           {map[string]string{"ip-sans": "10.0.0.1"}, []string{"10.0.0.1 is not allowed", "policy.validations"}},
		"two-days":     {map[string]string{"duration": "48h"}, []string{"requested duration of 48h", "24h"}},
		"unit":         {map[string]string{"duration": "2d"}, []string{"24h"}},
		"renew-before": {map[string]string{"duration": "1h", "renew-before": "2h"}, []string{"2h0m0s", "1h0m0s"}},
		"key-type":     {map[string]string{"key-type": "rsa2048"}, []string{"rsa-2048"}},
		"file-names":   {map[string]string{"certificate-file": "tls.pem", "privatekey-file": "tls.pem"}, []string{"tls.pem", "different names"}},
		"path":         {map[string]string{"certificate-file": "../tls.pem"}, []string{"certificate-file"}},
		"issuer":       {map[string]string{"issuer": "edge"}, []string{"edge", "default"}},
		"file-mode":    {map[string]string{"file-mode": "0400"}, []string{"file-mode", "root"}},
	}
	for name, test := range tests {
		p := pod{namespace: n, name: name, attributes: test.attributes, security: `{"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532}`}
		must(t, applyText(p.manifest()))
	}
	for name, test := range tests {
		if err := (pod{namespace: n, name: name}).hasEvent(patience, test.words...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Only the kubelet knows that no driver has the name.
	p := pod{namespace: n, name: "no-driver", driver: "none.example.com"}
	must(t, applyText(p.manifest()))
	p.waitEvent(t, patience, "not found in the list of registered CSI drivers")
	kubectl(t, "-n", n, "delete", "pod", p.name, "--now")
	// The API server says that an attribute has no quotes.
	err := applyText(strings.Replace(pod{namespace: n, name: "boolean", attributes: map[string]string{"spiffe": "false"}}.manifest(), `"spiffe":"false"`, `"spiffe":false`, 1))
	if err == nil || !strings.Contains(err.Error(), "cannot unmarshal bool into Go struct field CSIVolumeSource") {
		t.Errorf("an attribute without quotes: %v", err)
	}
}
