package chart

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	kubelet "k8s.io/kubelet/pkg/apis"

	"github.com/flexstack/step-csi/issuer"
)

var errNotRoot = errors.New("the plugin needs root: run this test with make test")

// Without podInfoOnMount, users could set a pod's identity. The authority needs the
// tokens of pods. With requiresRepublish, the kubelet sends new tokens, and confirms the
// volumes of an earlier process.
func TestCSIDriver(t *testing.T) {
	tokens := []any{object{"audience": issuer.TokenAudience, "expirationSeconds": 3600.0}}
	for _, c := range []struct {
		mode, kubernetes string
		differs          object
	}{
		{"node", "1.28.0", object{"requiresRepublish": true}},
		{"node", "1.37.2", object{"requiresRepublish": true}},
		{"ra", "1.30.0", object{"requiresRepublish": true, "tokenRequests": tokens}},
		{"ra", "1.34.9", object{"requiresRepublish": true, "tokenRequests": tokens}},
		{"ra", "1.35.0-gke.1", object{"requiresRepublish": true, "tokenRequests": tokens, "serviceAccountTokenInSecrets": true}},
		{"ra", "1.37.2", object{"requiresRepublish": true, "tokenRequests": tokens, "serviceAccountTokenInSecrets": true}},
	} {
		want := object{
			"podInfoOnMount": true, "attachRequired": false, "volumeLifecycleModes": []any{"Ephemeral"},
			"fsGroupPolicy": "None", "storageCapacity": false, "seLinuxMount": true,
		}
		maps.Copy(want, c.differs)
		for _, file := range []string{os.DevNull, allValues} {
			spec := at(render(t, "--values", file, "--set", "mode="+c.mode, "--kube-version", c.kubernetes)["CSIDriver"], "spec")
			if !reflect.DeepEqual(spec, want) {
				t.Errorf("mode %s at %s with %s: %v", c.mode, c.kubernetes, file, spec)
			}
		}
	}
}

// Each Secret of a provisioner is in one source of one volume only, and the configuration
// names its files.
func TestPasswordIsOnlyInTheVolume(t *testing.T) {
	const secret, another = "very-own-secret", "very-own-key"
	for name, c := range map[string]struct {
		values      string
		files       map[string][]item // by Secret
		provisioner object
	}{
		"password": {"passwordSecret.name=" + secret, map[string][]item{secret: {{"password", "issuers/default/password"}}},
			object{"type": "jwk", "name": "admin", "passwordFile": "issuers/default/password"}},
		"default": {"kid=abc", map[string][]item{"step-certificates-provisioner-password": {{"password", "issuers/default/password"}}},
			object{"type": "jwk", "name": "admin", "kid": "abc", "passwordFile": "issuers/default/password"}},
		"key": {"keySecret.name=" + secret, map[string][]item{secret: {{"key", "issuers/default/key"}}, "step-certificates-provisioner-password": nil},
			object{"type": "jwk", "name": "admin", "keyFile": "issuers/default/key"}},
		"key and password": {"keySecret.name=" + another + ",keySecret.key=k.pem,passwordSecret.name=" + secret,
			map[string][]item{secret: {{"password", "issuers/default/password"}}, another: {{"k.pem", "issuers/default/key"}}},
			object{"type": "jwk", "name": "admin", "passwordFile": "issuers/default/password", "keyFile": "issuers/default/key"}},
		"certificate": {"type=x5c,certificateSecret.name=" + secret,
			map[string][]item{secret: {{"tls.crt", "issuers/default/tls.crt"}, {"tls.key", "issuers/default/tls.key"}}, "step-certificates-provisioner-password": nil},
			object{"type": "x5c", "name": "admin", "certificateFile": "issuers/default/tls.crt", "privateKeyFile": "issuers/default/tls.key"}},
	} {
		for mode, workload := range map[string]string{"ra": "ra/Deployment", "node": "DaemonSet"} {
			values := "issuers.default.provisioner." + strings.ReplaceAll(c.values, ",", ",issuers.default.provisioner.")
			objects := render(t, "--set", values, "--set", "mode="+mode)
			if got := at(config(t, objects[workload]), "issuers", "default", "provisioner"); !reflect.DeepEqual(got, c.provisioner) {
				t.Errorf("%s, mode %s: the configuration has the provisioner %v", name, mode, got)
			}
			for secret, want := range c.files {
				var got []item
				for _, source := range configSources(objects[workload]) {
					if at(source, "secret", "name") == secret {
						got = append(got, items(source)...)
					}
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s, mode %s: the volume has %v of the Secret %s, want %v", name, mode, got, secret, want)
				}
				// The other place is the pod that checks the configuration, which runs on the same nodes.
				check, elsewhere := objects["check/Job"], maps.Clone(objects)
				delete(elsewhere, "check/Job")
				for place, o := range map[string]any{"the check": check, "all other objects": elsewhere} {
					if n := strings.Count(text(t, o), `"`+secret+`"`); n != min(len(want), 1) {
						t.Errorf("%s, mode %s: the Secret %s is in %d places of %s", name, mode, secret, n, place)
					}
				}
			}
			if objects["Secret"] != nil || objects["ra/Secret"] != nil {
				t.Error("the chart makes a Secret")
			}
		}
	}
}

var aSecret = regexp.MustCompile(`"secret\w*":`)

// In mode ra, nodes have no password, key or certificate of a provisioner, even if the root is in the same Secret: they get
// only roots from Secrets. They have their own token instead.
func TestNodesHaveNoPassword(t *testing.T) {
	for _, file := range append(valueFiles(t), os.DevNull) {
		objects := render(t, "--values", file, "--set", "mode=ra")
		var passwords []any
		for _, i := range config(t, objects["ra/Deployment"])["issuers"].(object) {
			for _, key := range []string{"passwordFile", "keyFile", "certificateFile", "privateKeyFile"} {
				passwords = append(passwords, at(i, "provisioner", key))
			}
		}
		roots, tokens := 0, []any{}
		for _, source := range configSources(objects["DaemonSet"]) {
			for _, i := range items(source) {
				if slices.Contains(passwords, any(i.path)) {
					t.Errorf("%s: the plugin has %s", file, i.path)
				}
			}
			if files := items(source); at(source, "secret") != nil && len(files) == 1 && filepath.Base(files[0].path) == "ca.crt" && files[0].key != "password" {
				roots++
			}
			if token := at(source, "serviceAccountToken"); token != nil {
				tokens = append(tokens, token)
			}
		}
		if n := len(aSecret.FindAllString(text(t, objects["DaemonSet"]), -1)); n != roots {
			t.Errorf("%s: the plugin refers to %d Secrets, but only %d have roots", file, n, roots)
		}
		if want := []any{object{"audience": issuer.TokenAudience, "expirationSeconds": 3600.0, "path": "token"}}; !reflect.DeepEqual(tokens, want) {
			t.Errorf("%s: the plugin has the tokens %v", file, tokens)
		}
	}
	for _, source := range configSources(render(t, "--set", "mode=node")["DaemonSet"]) {
		if at(source, "serviceAccountToken") != nil {
			t.Error("the plugin has an unused token in mode node")
		}
	}
}

func text(t *testing.T, o any) string {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The label lets pods in restricted namespaces of OpenShift use the volumes. The API
// server of OpenShift reads no other key:
// https://github.com/openshift/enhancements/blob/master/enhancements/storage/csi-inline-vol-security.md
func TestCSIDriverLabel(t *testing.T) {
	for _, level := range []string{"restricted", "baseline", "privileged"} {
		labels := at(render(t, "--set", "csiDriver.ephemeralVolumeProfile="+level)["CSIDriver"], "metadata", "labels").(object)
		for key, value := range labels {
			if strings.HasSuffix(key, "/csi-ephemeral-volume-profile") != (key == "security.openshift.io/csi-ephemeral-volume-profile" && value == level) {
				t.Errorf("%s: the label %s is %v", level, key, value)
			}
		}
		if labels["security.openshift.io/csi-ephemeral-volume-profile"] != level {
			t.Errorf("the labels are %v, want the level %s", labels, level)
		}
	}
}

// Mode node has no objects of the authority.
func TestModeNodeHasNoAuthority(t *testing.T) {
	objects := render(t, "--set", "mode=node")
	maps.DeleteFunc(objects, func(kind string, _ object) bool { return isHook(kind) })
	if got, want := slices.Sorted(maps.Keys(objects)), []string{"CSIDriver", "DaemonSet", "NetworkPolicy", "ResourceQuota", "ServiceAccount"}; !slices.Equal(got, want) {
		t.Errorf("the chart makes %v, want %v", got, want)
	}
}

// The plugin has the rights and the host paths that it needs, and no others.
func TestDaemonSet(t *testing.T) {
	objects := render(t)
	spec := at(objects["DaemonSet"], "spec", "template", "spec").(object)
	containers := spec["containers"].([]any)
	if len(containers) != 1 || spec["initContainers"] != nil {
		t.Fatalf("the pod has %d containers, want 1 and no init containers", len(containers))
	}
	if spec["automountServiceAccountToken"] != false || spec["hostNetwork"] == true || spec["hostPID"] == true || spec["hostIPC"] == true {
		t.Error("the pod mounts a token of its service account, or uses namespaces of the node")
	}
	if objects["ClusterRole"] != nil || objects["Role"] != nil {
		t.Error("the plugin has RBAC roles")
	}
	want := object{
		"privileged": true, "readOnlyRootFilesystem": true, "runAsUser": 0.0, "runAsGroup": 0.0,
		"capabilities": object{"drop": []any{"ALL"}},
	}
	if got := at(containers[0], "securityContext"); !reflect.DeepEqual(got, want) {
		t.Errorf("securityContext: %v", got)
	}
	hostPaths, types := map[string]string{}, map[string]any{}
	for _, v := range spec["volumes"].([]any) {
		if path, ok := at(v, "hostPath", "path").(string); ok {
			hostPaths[at(v, "name").(string)] = path
			types[path] = at(v, "hostPath", "type")
		}
	}
	propagation := map[string]any{}
	for _, m := range at(containers[0], "volumeMounts").([]any) {
		path, name := at(m, "mountPath").(string), at(m, "name").(string)
		if at(m, "subPath") != nil {
			t.Errorf("%s: the kubelet does not update a mount with subPath", path)
		}
		if hostPaths[name] == "" {
			continue
		}
		if hostPaths[name] != path {
			t.Errorf("the host path %s is mounted at %s, but the kubelet and the plugin must use the same paths", hostPaths[name], path)
		}
		propagation[path] = at(m, "mountPropagation")
	}
	if want := (map[string]any{
		"/var/lib/kubelet/pods":                   "Bidirectional",
		"/var/lib/kubelet/plugins/csi.step-ca.io": nil,
		"/var/lib/kubelet/plugins_registry":       nil,
	}); !reflect.DeepEqual(propagation, want) {
		t.Errorf("the host paths have the mount propagation %v, want %v", propagation, want)
	}
	// The kubelet makes its own directories, but not the plugin's.
	if want := (map[string]any{
		"/var/lib/kubelet/pods":                   "Directory",
		"/var/lib/kubelet/plugins/csi.step-ca.io": "DirectoryOrCreate",
		"/var/lib/kubelet/plugins_registry":       "Directory",
	}); !reflect.DeepEqual(types, want) {
		t.Errorf("the host paths have the types %v, want %v", types, want)
	}
}

// A changed configuration restarts the pods that read it. Other values restart no pods.
func TestConfigurationRestartsPods(t *testing.T) {
	annotations := func(kind string, args ...string) any {
		return at(render(t, args...)[kind], "spec", "template", "metadata", "annotations")
	}
	for _, c := range []struct {
		value             string
		plugin, authority bool
	}{
		{"issuers.default.duration.default=8h", true, true},
		{"policy.allowShortNames=true", true, true},
		{"driverName=tls.example.com", true, false},
		{"policy.validations[0].expression=1 > 0", false, true},
		{"issuers.default.provisioner.name=other", false, true},
		{"ra.limits.pod.rate=2", false, true},
		{"commonLabels.a=b", false, false},
	} {
		for kind, changes := range map[string]bool{"DaemonSet": c.plugin, "ra/Deployment": c.authority} {
			if got := !reflect.DeepEqual(annotations(kind), annotations(kind, "--set", c.value)); got != changes {
				t.Errorf("%s: restart of the %s is %v, want %v", c.value, kind, got, changes)
			}
		}
	}
}

// A user's labels cannot break the selectors: each selector matches all of its own pods
// and no others.
func TestSelectors(t *testing.T) {
	const long = "a-name-that-is-as-long-as-the-name-of-an-object-can-be-in-all-1"
	for _, args := range [][]string{
		{"--set-json", `podLabels={"app.kubernetes.io/name":"step-csi-ra","a":"b"}`, "--set-json", `ra.podLabels={"app.kubernetes.io/name":"step-csi"}`},
		{"--set-json", `commonLabels={"app.kubernetes.io/instance":"x"}`},
		{"--set", "nameOverride=" + long, "--set", "fullnameOverride=" + long},
	} {
		objects := render(t, append(args, "--set", "networkPolicy.restrictEgress=true")...)
		pods := map[string]any{
			"plugin":    at(objects["DaemonSet"], "spec", "template", "metadata", "labels"),
			"authority": at(objects["ra/Deployment"], "spec", "template", "metadata", "labels"),
			"test":      at(objects["hook"], "metadata", "labels"),
			"check":     at(objects["check/Job"], "spec", "template", "metadata", "labels"),
			"uninstall": at(objects["uninstall/Job"], "spec", "template", "metadata", "labels"),
		}
		spread := at(objects["ra/Deployment"], "spec", "template", "spec", "topologySpreadConstraints").([]any)[0]
		peer := func(kind, direction, way string, rule int) any {
			rules := at(objects[kind], "spec", direction).([]any)
			return at(at(rules[rule], way).([]any)[0], "podSelector", "matchLabels")
		}
		for name, selector := range map[string]struct {
			owner  string
			labels any
		}{
			"DaemonSet":              {"plugin", at(objects["DaemonSet"], "spec", "selector", "matchLabels")},
			"NetworkPolicy":          {"plugin", at(objects["NetworkPolicy"], "spec", "podSelector", "matchLabels")},
			"authority's ingress":    {"plugin", peer("ra/NetworkPolicy", "ingress", "from", 0)},
			"Deployment":             {"authority", at(objects["ra/Deployment"], "spec", "selector", "matchLabels")},
			"Service":                {"authority", at(objects["ra/Service"], "spec", "selector")},
			"PodDisruptionBudget":    {"authority", at(objects["ra/PodDisruptionBudget"], "spec", "selector", "matchLabels")},
			"spread":                 {"authority", at(spread, "labelSelector", "matchLabels")},
			"authority's own policy": {"authority", at(objects["ra/NetworkPolicy"], "spec", "podSelector", "matchLabels")},
			"plugin's egress":        {"authority", peer("NetworkPolicy", "egress", "to", 1)},
		} {
			labels, _ := selector.labels.(object)
			for pod, its := range pods {
				if got := len(labels) > 0 && selects(labels, its); got != (pod == selector.owner) {
					t.Errorf("%s: the %s selects the pods of the %s: %v", args, name, pod, got)
				}
			}
		}
	}
}

func selects(selector object, labels any) bool {
	for key, value := range selector {
		if at(labels, key) != value {
			return false
		}
	}
	return true
}

// The pod of helm test may run in a restricted namespace
// (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
func TestHelmTest(t *testing.T) {
	for file, issuer := range map[string]any{os.DevNull: nil, "testdata/no-default.yaml": "edge"} {
		pod := render(t, "--values", file)["hook"]
		container := at(pod, "spec", "containers").([]any)[0]
		if got := at(pod, "spec", "securityContext"); at(got, "runAsNonRoot") != true || at(got, "seccompProfile", "type") != "RuntimeDefault" {
			t.Errorf("securityContext of the pod: %v", got)
		}
		want := object{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": object{"drop": []any{"ALL"}}}
		if got := at(container, "securityContext"); !reflect.DeepEqual(got, want) {
			t.Errorf("securityContext: %v", got)
		}
		volume := at(pod, "spec", "volumes").([]any)[0]
		if at(volume, "csi", "driver") != "csi.step-ca.io" || at(volume, "csi", "readOnly") != true ||
			at(volume, "csi", "volumeAttributes", "issuer") != issuer {
			t.Errorf("volume: %v", volume)
		}
	}
}

// notes returns what helm install prints.
func notes(t *testing.T, args ...string) string {
	t.Helper()
	return notesOf(t, "step-csi", args...)
}

func notesOf(t *testing.T, release string, args ...string) string {
	t.Helper()
	out, err := command(".", helm, append([]string{"install", release, chart, "--namespace", "step-ca", "--dry-run=client"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(out, "\nNOTES:\n")
	return text
}

// The notes after an installation say which pods hold the password, and who can read
// the metrics.
func TestNotes(t *testing.T) {
	for args, want := range map[string][]string{
		"mode=ra":                          {"in mode ra", "step-csi-ra holds the password", "rollout status deployment/step-csi-ra", "app.kubernetes.io/name=step-csi-ra,"},
		"mode=node":                        {"in mode node", "WARNING: every node holds the password"},
		"issuers.default.publicRoots=true": {"WARNING: issuers.default.publicRoots is true"},
		"policy.validations[0].expression=request.dnsNames.size() < 2": {"WARNING: no validation in policy.validations mentions request.commonName, request.ipAddresses, request.uris, request.emailAddresses,\nso any pod"},
		"ra.runOn=control-plane,monitoring.podMonitor.enabled=true":    {"networkPolicy.from", "kubernetes.io/metadata.name: monitoring"},
	} {
		got := notes(t, "--set", args)
		for _, text := range want {
			if !strings.Contains(got, text) {
				t.Errorf("%s does not say %q:\n%s", args, text, got)
			}
		}
	}
	if got := notes(t, "--set", "ra.runOn=control-plane"); strings.Contains(got, "WARNING") || strings.Contains(got, "networkPolicy.from") {
		t.Errorf("mode ra on trusted nodes warns:\n%s", got)
	}
}

// The notes warn if a node can choose itself to run the registration authority.
func TestNotesWarnUnlessPinned(t *testing.T) {
	required := func(terms ...object) object {
		return object{"nodeAffinity": object{"requiredDuringSchedulingIgnoredDuringExecution": object{"nodeSelectorTerms": terms}}}
	}
	expression := func(key, operator string) object {
		return object{"matchExpressions": []any{object{"key": key, "operator": operator, "values": []any{"a"}}}}
	}
	const own, hostname = "node-restriction.kubernetes.io/ra", "kubernetes.io/hostname"
	byName := object{"matchFields": []any{object{"key": "metadata.name", "operator": "In", "values": []any{"node-1"}}}}
	for name, c := range map[string]struct {
		ra     object
		pinned bool
	}{
		"default":                    {object{}, false},
		"control plane":              {object{"runOn": "control-plane"}, true},
		"control plane by label":     {object{"nodeSelector": object{"node-role.kubernetes.io/control-plane": ""}}, true},
		"protected label":            {object{"nodeSelector": object{own: "true"}}, true},
		"label that a node can set":  {object{"nodeSelector": object{"disk": "ssd", "example.com/trusted": "true"}}, false},
		"host name":                  {object{"nodeSelector": object{hostname: "node-1"}}, false},
		"affinity":                   {object{"affinity": required(expression(own, "In"))}, true},
		"all alternatives":           {object{"affinity": required(expression(own, "Exists"), byName)}, true},
		"one of the alternatives":    {object{"affinity": required(expression(own, "Exists"), expression(hostname, "In"))}, false},
		"the last alternative":       {object{"affinity": required(expression(hostname, "In"), expression(own, "Exists"))}, false},
		"negated":                    {object{"affinity": required(expression(own, "NotIn"))}, false},
		"control plane besides":      {object{"runOn": "control-plane", "affinity": required(expression(hostname, "In"), expression("disk", "In"))}, true},
		"preferred is not required":  {object{"affinity": object{"nodeAffinity": object{"preferredDuringSchedulingIgnoredDuringExecution": []any{object{"weight": 1, "preference": expression(own, "In")}}}}}, false},
		"tolerations do not confine": {object{"tolerations": []any{object{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := notes(t, "--values", valueFile(t, "ra", c.ra))
			if warns := strings.Contains(got, "WARNING: the registration authority can run on any node"); warns == c.pinned {
				t.Errorf("the notes warn: %v\n%s", warns, got)
			}
		})
	}
	if got := notes(t, "--set", "mode=node"); strings.Contains(got, "can run on any node") {
		t.Errorf("mode node warns about a registration authority:\n%s", got)
	}
}

// The chart knows which labels a kubelet can set on its own Node: those of the kubelet's
// list, and those without a domain of Kubernetes.
func TestProtectedLabels(t *testing.T) {
	for label, protected := range map[string]bool{
		"node-restriction.kubernetes.io/a":             true,
		"team.node-restriction.kubernetes.io/a":        true,
		"node-role.kubernetes.io/control-plane":        true,
		"k8s.io/a":                                     true,
		"x.k8s.io/a":                                   true,
		"kubelet.kubernetes.io/a":                      false,
		"x.node.kubernetes.io/a":                       false,
		"a":                                            false,
		"node-restriction.kubernetes.io":               false,
		"example.com/node-restriction.kubernetes.io":   false,
		"node-restriction.kubernetes.io.example.com/a": false,
		"notkubernetes.io/a":                           false,
	} {
		got := strings.Contains(notes(t, "--values", valueFile(t, "ra", object{"nodeSelector": object{label: "x"}})), "can run on any node")
		if got == protected {
			t.Errorf("%s: the notes warn: %v", label, got)
		}
	}
	text := read(t, chart+"/templates/_helpers.tpl")
	for _, label := range kubelet.KubeletLabels() {
		if prefix, _, _ := strings.Cut(label, "/"); strings.HasSuffix("."+prefix, ".node.kubernetes.io") {
			continue // by the prefix
		}
		if !strings.Contains(text, `"`+label+`"`) {
			t.Errorf("a kubelet can set %s on its Node, but the chart takes this label for protected", label)
		}
	}
}

// With every value changed, no default is left in the rendered objects: the templates
// use each value everywhere.
func TestNoDefaultIsLeft(t *testing.T) {
	text := mustTemplate(t, "--values", allValues)
	for _, value := range []string{"9808", "8443", "/var/lib/kubelet", "csi.step-ca.io", "cluster.local", "step-certificates", "ghcr.io"} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, value) {
				t.Errorf("the default %s is left in: %s", value, strings.TrimSpace(line))
			}
		}
	}
}
