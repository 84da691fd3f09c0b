package chart

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// section returns the section of docs/distributions.md below the heading.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(read(t, root+"/docs/distributions.md"), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("docs/distributions.md has no section %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// openshiftAPI is what Helm finds in a cluster of OpenShift.
const openshiftAPI = "--api-versions=security.openshift.io/v1"

// With the values that docs/distributions.md names, the chart makes the same objects for
// these distributions as for upstream Kubernetes, with their kubelet's directory.
func TestDistributions(t *testing.T) {
	byDefault := mustTemplate(t)
	for _, d := range []struct{ name, kubernetes, value, directory string }{
		{"GKE", "1.36.2-gke.1234000", "", "/var/lib/kubelet"},
		{"K3s", "1.37.1+k3s1", "", "/var/lib/kubelet"},
		{"Talos", "1.37.2", "", "/var/lib/kubelet"},
		{"k0s", "1.37.1+k0s", "kubeletDir=/var/lib/k0s/kubelet", "/var/lib/k0s/kubelet"},
		{"MicroK8s", "1.37.0", "kubeletDir=/var/snap/microk8s/common/var/lib/kubelet", "/var/snap/microk8s/common/var/lib/kubelet"},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			documented := section(t, d.name)
			if d.value == "" && (strings.Contains(documented, "--set") || !strings.Contains(documented, "There is nothing to set")) ||
				!strings.Contains(documented, d.value) {
				t.Errorf("the documentation does not say to set %q:\n%s", d.value, documented)
			}
			got := mustTemplate(t, "--kube-version", d.kubernetes, "--set", d.value)
			if want := strings.ReplaceAll(byDefault, "/var/lib/kubelet", d.directory); got != want {
				t.Errorf("the objects differ from those of upstream Kubernetes:\n%s", got)
			}
			daemonSet := at(objects(t, got)["DaemonSet"], "spec", "template", "spec").(object)
			paths := []any{}
			for _, v := range daemonSet["volumes"].([]any) {
				if path := at(v, "hostPath", "path"); path != nil {
					paths = append(paths, path)
				}
			}
			if want := []any{d.directory + "/pods", d.directory + "/plugins/csi.step-ca.io", d.directory + "/plugins_registry"}; !reflect.DeepEqual(paths, want) {
				t.Errorf("host paths %v, want %v", paths, want)
			}
			if args := at(daemonSet["containers"].([]any)[0], "args").([]any); !slices.Contains(args, any("--kubelet-dir="+d.directory)) {
				t.Errorf("the node plugin has the arguments %v", args)
			}
		})
	}
}

// The namespace of the release needs a label where Pod Security is enforced, as in Talos.
// The DaemonSet's pod is what the level baseline forbids.
func TestNamespaceLabelIsDocumented(t *testing.T) {
	const command = "kubectl label namespace step-csi pod-security.kubernetes.io/enforce=privileged"
	if !strings.Contains(section(t, "All"), command) || !strings.Contains(section(t, "Talos"), "[label](#all)") {
		t.Errorf("docs/distributions.md lacks %s", command)
	}
	container := at(render(t)["DaemonSet"], "spec", "template", "spec", "containers").([]any)[0]
	if at(container, "securityContext", "privileged") != true {
		t.Error("the DaemonSet needs no label any more")
	}
}

// The chart makes the ResourceQuota that GKE requires for the priority classes: for all
// classes that the release uses, only where it is needed, and only for these pods.
func TestResourceQuota(t *testing.T) {
	const node, cluster = "system-node-critical", "system-cluster-critical"
	for _, c := range []struct {
		namespace, values string
		classes           []any
	}{
		{"step-ca", "", []any{cluster, node}},
		{"step-ca", "mode=node", []any{node}},
		{"step-ca", "ra.existing.release=other,csiDriver.create=false", []any{node}},
		{"step-ca", "ra.priorityClassName=own", []any{node}},
		{"step-ca", "priorityClassName=system-cluster-critical", []any{cluster}},
		{"step-ca", "priorityClassName=,ra.priorityClassName=own", nil},
		{"step-ca", "resourceQuota.enabled=false", nil},
		{"kube-system", "", nil},
	} {
		text, err := templateOf("step-csi", c.namespace, "--set", c.values)
		if err != nil {
			t.Fatal(err)
		}
		all := objects(t, text)
		used := map[any]bool{}
		for _, kind := range []string{"DaemonSet", "ra/Deployment"} {
			if class, _ := at(all[kind], "spec", "template", "spec", "priorityClassName").(string); strings.HasPrefix(class, "system-") {
				used[class] = true
			}
		}
		if c.classes == nil {
			if all["ResourceQuota"] != nil {
				t.Errorf("%s, %s: %v", c.namespace, c.values, all["ResourceQuota"])
			}
			continue
		}
		want := object{
			"hard": object{"pods": "1G"},
			"scopeSelector": object{"matchExpressions": []any{
				object{"scopeName": "PriorityClass", "operator": "In", "values": c.classes},
			}},
		}
		if got := all["ResourceQuota"]; !reflect.DeepEqual(at(got, "spec"), want) || at(got, "metadata", "namespace") != c.namespace {
			t.Errorf("%s, %s: %v", c.namespace, c.values, got)
		}
		if len(used) != len(c.classes) || slices.ContainsFunc(c.classes, func(class any) bool { return !used[class] }) {
			t.Errorf("%s, %s: the pods have the classes %v", c.namespace, c.values, used)
		}
	}
}

// On OpenShift, the node plugin's service account may use the SecurityContextConstraints
// "privileged", in its namespace, and nothing else. The other pods leave users and groups
// to OpenShift, as restricted-v2 requires.
func TestOpenShift(t *testing.T) {
	upstream := render(t)
	for name, args := range map[string][]string{
		"detected":      {openshiftAPI},
		"set":           {"--set", "openshift.scc.enabled=true"},
		"as documented": {"--set", "openshift.scc.enabled=true", "--api-versions=apps/v1"},
	} {
		all := render(t, args...)
		rules := []any{object{
			"apiGroups": []any{"security.openshift.io"}, "resources": []any{"securitycontextconstraints"},
			"resourceNames": []any{"privileged"}, "verbs": []any{"use"},
		}}
		if role := all["Role"]; !reflect.DeepEqual(role["rules"], rules) || at(role, "metadata", "namespace") != "step-ca" {
			t.Errorf("%s: the Role is %v", name, role)
		}
		binding := all["RoleBinding"]
		ref := object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": at(all["Role"], "metadata", "name")}
		subjects := []any{object{
			"kind": "ServiceAccount", "namespace": "step-ca", "name": at(all["DaemonSet"], "spec", "template", "spec", "serviceAccountName"),
		}}
		if !reflect.DeepEqual(binding["roleRef"], ref) || !reflect.DeepEqual(binding["subjects"], subjects) || at(binding, "metadata", "namespace") != "step-ca" {
			t.Errorf("%s: the RoleBinding is %v", name, binding)
		}
		want := object{"runAsNonRoot": true, "seccompProfile": object{"type": "RuntimeDefault"}}
		for kind, got := range map[string]any{
			"authority": at(all["ra/Deployment"], "spec", "template", "spec", "securityContext"),
			"test":      at(all["hook"], "spec", "securityContext"),
			"check":     at(all["check/Job"], "spec", "template", "spec", "securityContext"),
			"uninstall": at(all["uninstall/Job"], "spec", "template", "spec", "securityContext"),
		} {
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: securityContext of the %s: %v", name, kind, got)
			}
		}
		if at(all["CSIDriver"], "metadata", "labels", "security.openshift.io/csi-ephemeral-volume-profile") != "restricted" || at(all["CSIDriver"], "spec", "seLinuxMount") != true {
			t.Errorf("%s: the CSIDriver is %v", name, all["CSIDriver"])
		}
		// Everything else is the same as elsewhere.
		delete(all, "Role")
		delete(all, "RoleBinding")
		if !slices.Equal(slices.Sorted(maps.Keys(all)), slices.Sorted(maps.Keys(upstream))) {
			t.Errorf("%s: the chart makes %v", name, slices.Sorted(maps.Keys(all)))
		}
		for kind := range upstream {
			if kind != "ra/Deployment" && kind != "hook" && !strings.HasSuffix(kind, "Job") && !reflect.DeepEqual(all[kind], upstream[kind]) {
				t.Errorf("%s: the %s differs:\n%v", name, kind, all[kind])
			}
		}
	}
	for name, args := range map[string][]string{
		"upstream":     nil,
		"switched off": {openshiftAPI, "--set", "openshift.scc.enabled=false"},
	} {
		all := render(t, args...)
		if all["Role"] != nil || all["RoleBinding"] != nil || at(all["ra/Deployment"], "spec", "template", "spec", "securityContext", "runAsUser") != 65532.0 {
			t.Errorf("%s: the chart makes objects for OpenShift", name)
		}
	}
	if !strings.Contains(section(t, "OpenShift"), "--set openshift.scc.enabled=true") {
		t.Error("docs/distributions.md does not name openshift.scc.enabled")
	}
}

// The context of docs/distributions.md reaches the node plugin.
func TestSELinuxContext(t *testing.T) {
	_, context, _ := strings.Cut(section(t, "SELinux"), "--set seLinuxContext=")
	context, _, _ = strings.Cut(context, "\n")
	if context == "" {
		t.Fatal("docs/distributions.md does not name seLinuxContext")
	}
	args := func(values string) string {
		return fmt.Sprint(at(at(render(t, "--set", values)["DaemonSet"], "spec", "template", "spec", "containers").([]any)[0], "args"))
	}
	if got := args("seLinuxContext=" + context); !strings.Contains(got, "--selinux-context="+context+" ") && !strings.Contains(got, "--selinux-context="+context+"]") {
		t.Errorf("the arguments are %s", got)
	}
	if got := args(""); strings.Contains(got, "selinux") {
		t.Errorf("the arguments are %s", got)
	}
}
