package chart

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

var errNotRoot = errors.New("the plugin starts as root only: run the tests as make test does")

// Without podInfoOnMount, pods could write their own identity.
func TestCSIDriver(t *testing.T) {
	for _, file := range append(valueFiles(t), os.DevNull) {
		spec := at(render(t, "--values", file)["CSIDriver"], "spec")
		want := object{
			"podInfoOnMount": true, "attachRequired": false, "volumeLifecycleModes": []any{"Ephemeral"},
			"fsGroupPolicy": "None", "requiresRepublish": false, "storageCapacity": false,
		}
		if !reflect.DeepEqual(spec, want) {
			t.Errorf("%s: %v", file, spec)
		}
	}
}

// The Secret with the password is in one place: a source of the volume.
func TestPasswordIsOnlyInTheVolume(t *testing.T) {
	const secret = "very-own-secret"
	objects := render(t, "--set", "issuers.default.provisioner.passwordSecret.name="+secret)
	found := 0
	for _, source := range configSources(objects["DaemonSet"]) {
		if at(source, "secret", "name") == secret {
			found++
			if want := []item{{"password", "issuers/default/password"}}; !reflect.DeepEqual(items(source), want) {
				t.Errorf("the volume has %v", items(source))
			}
		}
	}
	text, err := json.Marshal(objects)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), secret); found != 1 || n != 1 {
		t.Errorf("the Secret is %d times in the volume, and %d times in all", found, n)
	}
	if objects["Secret"] != nil {
		t.Error("the chart has a Secret")
	}
}

// What the plugin may do, and what it sees of the node.
func TestDaemonSet(t *testing.T) {
	objects := render(t)
	spec := at(objects["DaemonSet"], "spec", "template", "spec").(object)
	containers := spec["containers"].([]any)
	if len(containers) != 1 || spec["initContainers"] != nil {
		t.Fatalf("%d containers", len(containers))
	}
	if spec["automountServiceAccountToken"] != false || spec["hostNetwork"] == true || spec["hostPID"] == true || spec["hostIPC"] == true {
		t.Error("it has a token, or namespaces of the node")
	}
	for kind := range objects {
		if strings.Contains(kind, "Role") {
			t.Errorf("there is a %s", kind)
		}
	}
	want := object{
		"privileged": true, "readOnlyRootFilesystem": true, "runAsUser": 0.0, "runAsGroup": 0.0,
		"capabilities": object{"drop": []any{"ALL"}},
	}
	if got := at(containers[0], "securityContext"); !reflect.DeepEqual(got, want) {
		t.Errorf("securityContext: %v", got)
	}
	hostPaths := map[string]string{}
	for _, v := range spec["volumes"].([]any) {
		if path, ok := at(v, "hostPath", "path").(string); ok {
			hostPaths[at(v, "name").(string)] = path
		}
	}
	propagation := map[string]any{}
	for _, m := range at(containers[0], "volumeMounts").([]any) {
		path, name := at(m, "mountPath").(string), at(m, "name").(string)
		if at(m, "subPath") != nil {
			t.Errorf("%s: the kubelet does not renew what is mounted by subPath", path)
		}
		if hostPaths[name] == "" {
			continue
		}
		if hostPaths[name] != path {
			t.Errorf("%s of the node is mounted at %s; the kubelet and the plugin have to use the same names", hostPaths[name], path)
		}
		propagation[path] = at(m, "mountPropagation")
	}
	if want := (map[string]any{
		"/var/lib/kubelet/pods":             "Bidirectional",
		"/var/lib/kubelet/plugins":          "HostToContainer",
		"/var/lib/kubelet/plugins_registry": nil,
	}); !reflect.DeepEqual(propagation, want) {
		t.Errorf("of the node it has %v", propagation)
	}
}

// A changed configuration restarts the pods; the chart's version does not.
func TestChecksumOfTheConfiguration(t *testing.T) {
	annotations := func(args ...string) any {
		return at(render(t, args...)["DaemonSet"], "spec", "template", "metadata", "annotations")
	}
	if reflect.DeepEqual(annotations(), annotations("--set", "issuers.default.duration.default=8h")) {
		t.Error("the pods stay as they are when the configuration changes")
	}
	if !reflect.DeepEqual(annotations(), annotations("--set", "commonLabels.a=b")) {
		t.Error("the pods change when the configuration stays")
	}
}

// Labels of the user cannot take the pods away from their DaemonSet, and the
// pod of the test is not one of them.
func TestSelector(t *testing.T) {
	objects := render(t, "--set-json", `podLabels={"app.kubernetes.io/name":"x","a":"b"}`, "--set-json", `commonLabels={"app.kubernetes.io/instance":"x"}`)
	selector := at(objects["DaemonSet"], "spec", "selector", "matchLabels").(object)
	if len(selector) == 0 || !selects(selector, at(objects["DaemonSet"], "spec", "template", "metadata", "labels")) {
		t.Error("the DaemonSet does not select its pods")
	}
	if selects(selector, at(objects["hook"], "metadata", "labels")) {
		t.Error("the DaemonSet selects the pod of the test")
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

// With every value changed, what is rendered has nothing of the defaults: each
// value is used in all the places that it belongs to.
func TestNoDefaultIsLeft(t *testing.T) {
	text := mustTemplate(t, "--values", allValues)
	for _, value := range []string{"9808", "/var/lib/kubelet", "csi.step-ca.io", "cluster.local", "step-certificates", "ghcr.io"} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, value) {
				t.Errorf("%s: %s", value, strings.TrimSpace(line))
			}
		}
	}
}
