//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A hundred pods start at once. All run, and no pod has an empty or partial volume.
func hundredPods(t *testing.T) {
	namespace(t, "hundred", "baseline")
	check := `for f in tls.crt tls.key ca.crt; do [ -s /etc/tls/$f ] || exit 1; done; exec sleep 100000`
	// The first hundred pods stay: their removal would slow the second hundred.
	without := replicas(t, "empty-dir", `"emptyDir": {}`, "exec sleep 100000")
	with := replicas(t, "certificates", fmt.Sprintf(`"csi": {"driver": %q, "readOnly": true, "volumeAttributes": {"service-names": "many"}}`, driverName), check)
	fmt.Printf("    100 pods from created to running: %.1f s with a certificate, %.1f s with an emptyDir, %.2f times as long\n",
		with.Seconds(), without.Seconds(), with.Seconds()/without.Seconds())
}

// replicas starts a hundred pods, and returns how long it takes until all run.
func replicas(t *testing.T, name, volume, script string) time.Duration {
	t.Helper()
	begin := time.Now()
	must(t, applyText(fmt.Sprintf(`{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": %[1]q, "namespace": "hundred"}, "spec": {
		"replicas": 100, "selector": {"matchLabels": {"app": %[1]q}}, "template": {"metadata": {"labels": {"app": %[1]q}}, "spec": {
			"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
			"containers": [{"name": "app", "image": "docker.io/library/busybox:1.37", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", %[3]q],
				"volumeMounts": [{"name": "tls", "mountPath": "/etc/tls"}]}],
			"volumes": [{"name": "tls", %[2]s}]}}}}`, name, volume, script)))
	kubectl(t, "-n", "hundred", "wait", "--for=jsonpath={.status.readyReplicas}=100", "deployment/"+name, "--timeout=5m")
	took := time.Since(begin)
	restarts := kubectl(t, "-n", "hundred", "get", "pods", "-l", "app="+name, "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
	if strings.Trim(restarts, "0 ") != "" {
		t.Errorf("%s: containers started without all files: %s", name, restarts)
	}
	return took
}

// The plugin is killed without warning. No pod misses a file, and renewals continue.
func pluginKilled(t *testing.T) {
	p := witness(t, "killed")
	for range 2 {
		leaf := p.files(t)
		killPlugin(t)
		p.waitRotation(t, leaf, patience)
	}
	waitPlugin(t)
	sawAll(t, p)
}

// A pod is deleted while the plugin is down. The pod ends when the plugin is back.
func pluginDown(t *testing.T) {
	namespace(t, "down", "baseline")
	p := pod{namespace: "down", name: "deleted"}
	p.start(t)
	uid := p.uid(t)
	must(t, scalePlugin("nowhere"))
	t.Cleanup(func() { _ = scalePlugin("") })
	kubectl(t, "-n", plugin, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=step-csi", "--timeout=5m")
	kubectl(t, "-n", p.namespace, "delete", "pod", p.name, "--wait=false")
	time.Sleep(3 * time.Second)
	if here, err := onNode(uid); err != nil || !strings.Contains(here, "kubernetes.io~csi/tls/mount") {
		t.Errorf("the volume is gone without the plugin: %v: %s", err, here)
	}
	must(t, scalePlugin(""))
	waitPlugin(t)
	eventually(t, patience, func() error { return gone(uid) })
}

// scalePlugin restricts the plugin to nodes with the label. An empty label removes the
// restriction.
func scalePlugin(label string) error {
	value := "null"
	if label != "" {
		value = `"` + label + `"`
	}
	_, err := command("kubectl", "-n", plugin, "patch", "daemonset", "step-csi", "--type=merge",
		"--patch", `{"spec": {"template": {"spec": {"nodeSelector": {"e2e": `+value+`}}}}}`)
	return err
}

// step-ca is down for longer than the certificate of a pod is valid. New pods wait, and
// their events have the reason. Running pods keep their files. All recover without
// intervention.
func caOutage(t *testing.T) {
	p := witness(t, "outage")
	expires := pod{namespace: p.namespace, name: "expires", attributes: map[string]string{"duration": "20s"}}
	expires.start(t)
	kubectl(t, "-n", identity, "scale", "deployment/step-ca", "--replicas=0")
	t.Cleanup(func() { _, _ = command("kubectl", "-n", identity, "scale", "deployment/step-ca", "--replicas=1") })
	kubectl(t, "-n", identity, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=step-ca", "--timeout=5m")
	late := pod{namespace: p.namespace, name: "late"}
	must(t, applyText(late.manifest()))
	late.waitEvent(t, patience, "the CA https://step-ca.flexstack-identity.svc.cluster.local:9000")
	eventually(t, patience, func() error {
		if _, err := expires.tryFiles(); err == nil || !strings.Contains(err.Error(), "expired") {
			return fmt.Errorf("the certificate has not expired: %w", err)
		}
		return nil
	})
	whyNotRenewed(t, expires)
	leaf := p.files(t)
	kubectl(t, "-n", identity, "scale", "deployment/step-ca", "--replicas=1")
	kubectl(t, "-n", identity, "rollout", "status", "deployment/step-ca", "--timeout=5m")
	p.waitRotation(t, leaf, patience)
	late.waitReady(t)
	late.files(t)
	eventually(t, patience, func() error {
		_, err := expires.tryFiles()
		return err
	})
	if restarts := expires.restarts(t); restarts != "0" {
		t.Errorf("the pod was restarted %s times", restarts)
	}
	sawAll(t, p)
}

func kubeletRestart(t *testing.T) {
	p := witness(t, "kubelet")
	leaf := p.files(t)
	killKubelet(t)
	fresh := pod{namespace: p.namespace, name: "fresh"}
	fresh.start(t)
	fresh.files(t)
	p.waitRotation(t, leaf, patience)
	sawAll(t, p)
}

// killKubelet kills the kubelet. The cluster starts it again.
func killKubelet(t *testing.T) {
	t.Helper()
	node(t, `for d in /proc/[0-9]*; do case "$(tr '\0' ' ' < $d/cmdline)" in kubelet\ *) kill -9 ${d#/proc/}; exit 0;; esac; done; exit 1`)
}

// The plugin's container mounts nothing of the other plugins of the node. Somebody removes
// the plugin's directory on the node, which also removes the mount in the container. The
// kubelet restarts the plugin, which serves again, also after a restart of the kubelet.
func directoryRemoved(t *testing.T) {
	p := witness(t, "directory")
	leaf := p.files(t)
	const plugins = "/var/lib/kubelet/plugins"
	var mounted []string
	for line := range strings.Lines(node(t, `for d in /proc/[0-9]*; do case "$(tr '\0' ' ' < $d/cmdline)" in /step-csi\ node*) cat $d/mountinfo; exit 0;; esac; done; exit 1`)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], plugins) {
			mounted = append(mounted, fields[4])
		}
	}
	slices.Sort(mounted)
	if want := []string{plugins + "/" + driverName, plugins + "_registry"}; !slices.Equal(mounted, want) {
		t.Errorf("the plugin mounts %q, want %q", mounted, want)
	}
	node(t, "rm -r "+plugins+"/"+driverName)
	eventually(t, patience, func() error {
		_, err := tool("exec", "test", "-S", plugins+"/"+driverName+"/csi.sock")
		return err
	})
	waitPlugin(t)
	fresh := pod{namespace: p.namespace, name: "fresh"}
	fresh.start(t)
	fresh.files(t)
	leaf = p.waitRotation(t, leaf, patience)
	killKubelet(t)
	last := pod{namespace: p.namespace, name: "last"}
	last.start(t)
	last.files(t)
	p.waitRotation(t, leaf, patience)
	sawAll(t, p)
}

// By the page about it, the uninstalled plugin leaves nothing but its directory. While a pod
// has a volume, Helm refuses to uninstall. If it is forced to, the pod keeps its files, and
// its deletion waits for the plugin, or for somebody who unmounts the volume.
func uninstall(t *testing.T) {
	noVolumes(t, patience) // until deleted pods have ended
	namespace(t, "uninstall", "baseline")
	p := pod{namespace: "uninstall", name: "remains"}
	p.start(t)
	uid := p.uid(t)
	document := openPage(t, "uninstall.md")
	if out := document.sh(t, "get pods"); !strings.Contains(out, "uninstall remains "+driverName+"\n") {
		t.Errorf("the pods with volumes are\n%s", out)
	}
	// The next scenario uses the namespace.
	byHelm := document.script(t, "helm uninstall", "kubectl delete namespace step-csi", "")
	out, err := command("sh", "-euc", "exec 2>&1\n"+byHelm)
	if err == nil || !strings.Contains(out, "uninstall/remains on the node ") {
		t.Errorf("helm uninstall: %v, want the refusal that names the pod:\n%s", err, out)
	}
	// With the command that the refusal prints, Helm accepts upgrades again.
	_, undo, _ := strings.Cut(out, "To keep the release, run: ")
	undo, _, _ = strings.Cut(undo, "\"")
	_, err = command("sh", "-euc", undo+" --wait --timeout 5m")
	must(t, err)
	must(t, installPlugin())
	forced := func() {
		t.Helper()
		_, err := command("helm", "-n", plugin, "uninstall", "step-csi", "--no-hooks", "--wait", "--timeout=5m")
		must(t, err)
	}
	deleted := func(p pod) {
		t.Helper()
		kubectl(t, "-n", p.namespace, "delete", "pod", p.name, "--wait=false")
		time.Sleep(3 * time.Second)
		if since := kubectl(t, "-n", p.namespace, "get", "pod", p.name, "-o", "jsonpath={.metadata.deletionTimestamp}"); since == "" {
			t.Error("the pod is not being deleted")
		}
	}
	forced()
	p.files(t)
	deleted(p)
	must(t, installPlugin())
	kubectl(t, "-n", p.namespace, "wait", "--for=delete", "pod/"+p.name, "--timeout=5m")
	eventually(t, patience, func() error { return gone(uid) })

	hand := pod{namespace: "uninstall", name: "by-hand"}
	hand.start(t)
	uid = hand.uid(t)
	forced()
	deleted(hand)
	node(t, document.take(t, "sh", "/proc/self/mountinfo", nil))
	killKubelet(t)
	kubectl(t, "-n", hand.namespace, "wait", "--for=delete", "pod/"+hand.name, "--timeout=5m")
	eventually(t, patience, func() error { return gone(uid) })

	must(t, installPlugin())
	shell(t, byHelm)
	node(t, document.take(t, "sh", "rm -r", nil))
	nothingLeft(t)
}

func nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, patience, func() error {
		left, err := tool("exec", "sh", "-c", "find /var/lib/kubelet/plugins /var/lib/kubelet/plugins_registry -type s | grep step-ca; grep "+driverName+" /proc/self/mountinfo; true")
		if err == nil && left != "" {
			err = fmt.Errorf("left on the node:\n%s", left)
		}
		return err
	})
	node(t, "rm -rf /var/lib/kubelet/plugins/"+driverName) // as the documentation says
	eventually(t, patience, func() error {
		output, err := command("kubectl", "get", "csidrivers,csinodes,daemonsets,deployments,replicasets,services,poddisruptionbudgets,pods,jobs,configmaps,serviceaccounts,networkpolicies,clusterroles,clusterrolebindings,roles,rolebindings,resourcequotas", "-A", "-o", "json")
		if err != nil {
			return err
		}
		var objects struct{ Items []json.RawMessage }
		if err := json.Unmarshal([]byte(output), &objects); err != nil {
			return err
		}
		for _, object := range objects.Items {
			var named struct {
				Metadata struct{ Name, Namespace string }
			}
			if err := json.Unmarshal(object, &named); err != nil {
				return err
			}
			ofCA := strings.HasPrefix(named.Metadata.Name, "step-ca") // its template is for step-csi
			ofUser := named.Metadata.Namespace == plugin && slices.Contains([]string{"default", "kube-root-ca.crt", "step-csi-ca-root", "additional-roots"}, named.Metadata.Name)
			if text := string(object); !ofCA && !ofUser && (strings.Contains(text, "step-csi") || strings.Contains(text, driverName)) {
				return fmt.Errorf("left in the cluster: %s", text)
			}
		}
		return nil
	})
}

// In the namespace of the chart step-certificates, step-csi needs no values, and in a
// namespace of its own the commands of docs/install.md. The test makes the objects of that
// chart, for this cluster's CA.
func stepCertificates(t *testing.T) {
	const n = "step-ca"
	namespace(t, n, "privileged")
	root := kubectl(t, "-n", plugin, "get", "configmap", "step-csi-ca-root", "-o", `jsonpath={.data.root_ca\.crt}`)
	secret := kubectl(t, "-n", plugin, "get", "secret", "step-csi-provisioner", "-o", "jsonpath={.data.password}")
	address := kubectl(t, "-n", identity, "get", "pods", "-l", "app.kubernetes.io/name=step-ca", "-o", "jsonpath={.items[0].status.podIP}")
	must(t, applyText(fmt.Sprintf(`{"apiVersion": "v1", "kind": "List", "items": [
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "step-certificates-certs", "namespace": %[1]q}, "data": {"root_ca.crt": %[2]q}},
		{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "step-certificates-provisioner-password", "namespace": %[1]q}, "data": {"password": %[3]q}},
		{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "step-certificates", "namespace": %[1]q}, "spec": {"ports": [{"port": 443, "targetPort": 9000, "name": "https"}]}},
		{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "step-certificates-1", "namespace": %[1]q, "labels": {"kubernetes.io/service-name": "step-certificates"}},
			"addressType": "IPv4", "ports": [{"name": "https", "port": 9000}], "endpoints": [{"addresses": [%[4]q]}]}]}`, n, root, secret, address)))
	// The CA gets the name that the chart gives it.
	kubectl(t, "-n", identity, "exec", "deployment/step-ca", "--", "sed", "-i", `s/"dnsNames": \[/"dnsNames": ["step-certificates.step-ca.svc.cluster.local",/`, "/home/step/config/ca.json")
	kubectl(t, "-n", identity, "exec", "deployment/step-ca", "--", "sh", "-c", "kill -HUP 1")
	// The grace period only shortens the scenario.
	if _, err := command("helm", "install", "step-csi", chart, "-n", n, "--set", "image.tag=dev,ra.terminationGracePeriodSeconds=4", "--wait", "--timeout=5m"); err != nil {
		t.Fatal(err)
	}
	p := pod{namespace: n, name: "by-default", attributes: map[string]string{"service-names": "by-default"}}
	p.start(t)
	if leaf := p.files(t); len(leaf.DNSNames) != 3 {
		t.Errorf("the certificate has the DNS names %q; by default, it must not have the short name", leaf.DNSNames)
	}
	kubectl(t, "-n", n, "delete", "pod", p.name, "--now")
	if _, err := command("helm", "-n", n, "uninstall", "step-csi", "--wait", "--timeout=5m"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)

	// In a namespace of its own, by the commands of docs/install.md.
	kubectl(t, "-n", plugin, "delete", "configmap/step-csi-ca-root", "secret/step-csi-provisioner")
	_, err := shellBlock("docs/install.md", "**The chart step-certificates**", func(script string) string {
		return script + " --set image.tag=dev,ra.terminationGracePeriodSeconds=4"
	})
	must(t, err)
	p.start(t)
	p.files(t)
	kubectl(t, "-n", n, "delete", "pod", p.name, "--now")
	if _, err := command("helm", "-n", plugin, "uninstall", "step-csi", "--wait", "--timeout=5m"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}
