package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// edgeValues are the values of docs/distributions.md for another node pool.
func edgeValues(t *testing.T) string {
	t.Helper()
	_, text, _ := strings.Cut(section(t, "Node pools with different kubelet directories"), "```yaml\n")
	text, _, found := strings.Cut(text, "```")
	if !found {
		t.Fatal("docs/distributions.md has no values for another node pool")
	}
	file := filepath.Join(t.TempDir(), "edge.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// releaseOf renders the chart as a release in the namespace step-ca.
func releaseOf(t *testing.T, name string, args ...string) map[string]object {
	t.Helper()
	text, err := templateOf(name, "step-ca", args...)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

// inBoth returns the objects that two releases would fight over.
func inBoth(a, b map[string]object) (names []string) {
	id := func(o object) string {
		return fmt.Sprint(o["apiVersion"], " ", o["kind"], " ", at(o, "metadata", "namespace"), "/", at(o, "metadata", "name"))
	}
	for _, one := range a {
		for _, other := range b {
			if id(one) == id(other) {
				names = append(names, id(one))
			}
		}
	}
	slices.Sort(names)
	return names
}

// Two releases in one cluster, for nodes with different kubelet directories: they share no
// object, and the second one uses the CSIDriver, the authority and the service account of
// the first one.
func TestNodePools(t *testing.T) {
	edge := edgeValues(t)
	for name, test := range map[string]struct{ first, second []string }{
		"as documented": {nil, nil},
		"mode node":     {[]string{"--set", "mode=node"}, []string{"--set", "mode=node"}},
		"all options":   {[]string{"--values", allValues}, []string{"--values", allValues, "--set", "fullnameOverride=,nameOverride=,ra.existing.fullname=all-of-it"}},
		"OpenShift":     {[]string{openshiftAPI}, []string{openshiftAPI}},
		"monitoring": {
			[]string{"--set", "monitoring.podMonitor.enabled=true,monitoring.prometheusRule.enabled=true"},
			[]string{"--set", "monitoring.podMonitor.enabled=true"},
		},
		"egress":       {[]string{"--set", "networkPolicy.restrictEgress=true"}, []string{"--set", "networkPolicy.restrictEgress=true"}},
		"another name": {[]string{"--set", "fullnameOverride=tls"}, []string{"--set", "ra.existing.fullname=tls"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := releaseOf(t, "step-csi", append(test.first, "--set", "nodeSelector.pool=main")...)
			second := releaseOf(t, "step-csi-edge", append([]string{"--values", edge}, test.second...)...)
			if names := inBoth(first, second); len(names) > 0 {
				t.Errorf("both releases make %v", names)
			}
			for kind := range second {
				if strings.HasPrefix(kind, "ra/") && kind != "ra/NetworkPolicy" || kind == "CSIDriver" {
					t.Errorf("the second release makes the %s of the first one", kind)
				}
			}
			for kind, o := range second {
				if at(o, "metadata", "namespace") != "step-ca" && !strings.HasPrefix(kind, "uninstall/ClusterRole") {
					t.Errorf("the %s has no namespace", kind)
				}
			}
			for _, pair := range [][2]map[string]object{{first, second}, {second, first}} {
				own := at(pair[0]["DaemonSet"], "spec", "selector", "matchLabels").(object)
				if selects(own, at(pair[1]["DaemonSet"], "spec", "template", "metadata", "labels")) {
					t.Errorf("a DaemonSet selects the other release's pods by %v", own)
				}
			}
			for pool, release := range map[string]map[string]object{"main": first, "edge": second} {
				plugin, test := at(release["DaemonSet"], "spec", "template", "spec", "nodeSelector"), at(release["hook"], "spec", "nodeSelector")
				if at(plugin, "pool") != pool || !reflect.DeepEqual(plugin, test) {
					t.Errorf("the node plugin of the pool %s runs on the nodes %v, and helm test on %v", pool, plugin, test)
				}
			}
		})
	}
}

// The second release's node plugins reach the authority of the first one, and it accepts
// them.
func TestNodePoolsShareTheAuthority(t *testing.T) {
	edge := edgeValues(t)
	for name, test := range map[string]struct{ first, second string }{
		"as documented":         {"", ""},
		"another name":          {"fullnameOverride=tls", "ra.existing.fullname=tls"},
		"another account":       {"serviceAccount.name=plugins", "serviceAccount.name=plugins"},
		"another port, domain":  {"ra.port=9443,clusterDomain=example", "ra.port=9443,clusterDomain=example"},
		"restricted egress":     {"networkPolicy.restrictEgress=true", "networkPolicy.restrictEgress=true"},
		"on the node's network": {"", "hostNetwork=true,networkPolicy.nodeCIDRs={192.0.2.0/24}"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := releaseOf(t, "step-csi", "--set", test.first)
			second := releaseOf(t, "step-csi-edge", "--values", edge, "--set", test.second)
			answers := config(t, first["ra/Deployment"])
			service := first["ra/Service"]
			port := at(service, "spec", "ports").([]any)[0].(object)["port"]
			url := fmt.Sprintf("https://%s:%v", at(answers, "authority", "names").([]any)[0], port)
			asks := at(config(t, second["DaemonSet"]), "issuers").(object)
			if got := at(asks, "default", "url"); got != url || len(asks) != 1 {
				t.Errorf("the node plugin calls %v, but the authority is at %s", got, url)
			}
			pod := at(second["DaemonSet"], "spec", "template").(object)
			if got, want := fmt.Sprint("step-ca/", at(pod, "spec", "serviceAccountName")), at(answers, "authority", "plugin"); got != want {
				t.Errorf("the node plugin is %s, but the authority accepts %v", got, want)
			}
			if second["ServiceAccount"] != nil || at(first["ServiceAccount"], "metadata", "name") != at(pod, "spec", "serviceAccountName") {
				t.Error("the service account is not that of the first release")
			}
			if err := startPlugin(pluginFiles(t, second)); !refusedForTheDirectory(err) {
				t.Error(err)
			}

			authority := labelsOf(at(first["ra/Deployment"], "spec", "template"))
			plugin := peer{namespace: "step-ca", labels: labelsOf(pod)}
			if strings.Contains(test.second, "hostNetwork") {
				plugin = peer{address: "192.0.2.7"}
			}
			stranger := peer{namespace: "step-ca", labels: labels.Set{"app.kubernetes.io/name": "step-csi", "app.kubernetes.io/instance": "another"}}
			number := int32(port.(float64))
			alone := policiesOf(t, first)
			both := append(policiesOf(t, second), alone...)
			if admits(t, alone, authority, number, plugin) {
				t.Error("the policy of the first release alone allows the second one: the test is void")
			}
			if !admits(t, both, authority, number, plugin) {
				t.Error("the second release's node plugins cannot reach the authority")
			}
			if admits(t, both, authority, number, stranger) || admits(t, both, authority, 9808, plugin) {
				t.Error("the second release opens the authority to others, or its metrics")
			}
			if strings.Contains(test.second, "restrictEgress") && !slices.ContainsFunc(policiesOf(t, second), func(p networking.NetworkPolicy) bool {
				return selected(t, &p.Spec.PodSelector, plugin.labels) && slices.ContainsFunc(p.Spec.Egress, func(rule networking.NetworkPolicyEgressRule) bool {
					return slices.ContainsFunc(rule.To, func(to networking.NetworkPolicyPeer) bool {
						return to.PodSelector != nil && selected(t, to.PodSelector, authority)
					})
				})
			}) {
				t.Error("the egress of the second release's node plugins does not lead to the authority")
			}
			if slices.ContainsFunc(policiesOf(t, second), func(p networking.NetworkPolicy) bool {
				return selected(t, &p.Spec.PodSelector, authority) && slices.Contains(p.Spec.PolicyTypes, networking.PolicyTypeEgress)
			}) {
				t.Error("the second release restricts the egress of the authority")
			}
		})
	}
}

// Two drivers in one cluster: releases of the same name in two namespaces, each with its
// own authority and driver name, share no object.
func TestReleasesOfOneName(t *testing.T) {
	render := func(namespace, driver string) map[string]object {
		text, err := templateOf("step-csi", namespace, "--set", "driverName="+driver, openshiftAPI)
		if err != nil {
			t.Fatal(err)
		}
		return objects(t, text)
	}
	if names := inBoth(render("a", "a.example.com"), render("b", "b.example.com")); len(names) > 0 {
		t.Errorf("both releases make %v", names)
	}
	// The comparison finds something.
	if names := inBoth(render("a", "a.example.com"), render("b", "a.example.com")); !slices.Equal(names, []string{"storage.k8s.io/v1 CSIDriver <nil>/a.example.com"}) {
		t.Errorf("with one driver name, both releases make %v", names)
	}
}

// The pod of helm test runs on tainted nodes of its pool. It does not tolerate all taints,
// and so stays away from nodes that are not ready.
func TestHelmTestTolerations(t *testing.T) {
	for values, want := range map[string][]core.Toleration{
		`[{"operator":"Exists"}]`: nil,
		`[]`:                      nil,
		`[{"operator":"Exists"},{"key":"pool","value":"edge","effect":"NoSchedule"}]`: {{Key: "pool", Value: "edge", Effect: "NoSchedule"}},
	} {
		var pod core.Pod
		if err := yaml.UnmarshalStrict([]byte(text(t, render(t, "--set-json", "tolerations="+values)["hook"])), &pod); err != nil {
			t.Fatal(err)
		}
		if got := pod.Spec.Tolerations; !slices.Equal(got, want) {
			t.Errorf("%s: %v", values, got)
		}
	}
}

// The notes name the release with the authority, its Deployment, and the CSIDriver that
// another release must have made. They do not warn about an authority that is not theirs.
func TestNotesOfNodePools(t *testing.T) {
	edge := edgeValues(t)
	got := notesOf(t, "step-csi-edge", "--values", edge)
	for _, want := range []string{
		"the registration authority step-csi-ra of the release\nstep-csi, and its service account",
		"kubectl get csidriver csi.step-ca.io",
		"rollout status deployment/step-csi-ra\n",
		"rollout status daemonset/step-csi-edge\n",
		"helm -n step-ca test step-csi-edge\n",
		"app.kubernetes.io/name=step-csi-ra,app.kubernetes.io/instance=step-csi\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the notes lack %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "WARNING") || strings.Contains(got, "holds the password") {
		t.Errorf("the notes warn about an authority that this release does not have:\n%s", got)
	}
	if got := notes(t); strings.Contains(got, "csidriver") {
		t.Errorf("the notes say that the CSIDriver is missing:\n%s", got)
	}
}
