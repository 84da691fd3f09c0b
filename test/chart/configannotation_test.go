package chart

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The configuration is in the pods themselves, so that an old pod that is replaced during a
// failed upgrade starts with the configuration of its own revision. No object outside of the
// pod template has a part of it.
func TestConfigurationIsInThePods(t *testing.T) {
	objects := render(t)
	if objects["ConfigMap"] != nil || objects["ra/ConfigMap"] != nil {
		t.Error("the chart makes a ConfigMap, which pods of several revisions share")
	}
	for _, kind := range []string{"DaemonSet", "ra/Deployment"} {
		want := object{"items": []any{object{
			"path": "step-csi.yaml", "fieldRef": object{"fieldPath": "metadata.annotations['step-csi.io/config']"},
		}}}
		if got := at(configSources(objects[kind])[0], "downwardAPI"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the configuration is mounted from %v", kind, got)
		}
		if text := configAnnotation(t, objects[kind]); strings.Contains(text, "\n") || !strings.HasPrefix(text, "{") {
			t.Errorf("%s: the annotation is not one line of JSON: %s", kind, text)
		}
	}
}

// A user's annotations are added, and cannot replace the configuration.
func TestPodAnnotations(t *testing.T) {
	objects := render(t, "--set-json", `podAnnotations={"step-csi.io/config":"mine","a":"1"}`, "--set-json", `ra.podAnnotations={"step-csi.io/config":"mine","b":"2"}`)
	for kind, key := range map[string]string{"DaemonSet": "a", "ra/Deployment": "b"} {
		annotations := at(objects[kind], "spec", "template", "metadata", "annotations").(object)
		if len(annotations) != 2 || annotations[key] == nil || annotations["step-csi.io/config"] == "mine" {
			t.Errorf("%s: %v", kind, annotations)
		}
	}
}

// Text in the values reaches the programs as it is written.
func TestTextOfTheConfiguration(t *testing.T) {
	const message = "<a> & \"b\" 'c' \\ $(HOME) ${X} {{ .Values }} # d: e\n- ü \u2028 \t"
	file := valueFile(t, "policy.validations", []any{object{"expression": "true && 1 < 2", "message": message}})
	for mode, kind := range map[string]string{"ra": "ra/Deployment", "node": "DaemonSet"} {
		validation := at(config(t, render(t, "--values", file, "--set", "mode="+mode)[kind]), "policy", "validations").([]any)[0]
		if at(validation, "message") != message || at(validation, "expression") != "true && 1 < 2" {
			t.Errorf("mode %s: %v", mode, validation)
		}
	}
}

// Kubernetes limits the annotations of an object to 256 KiB. The chart says so before the
// API server does.
func TestConfigurationIsTooLong(t *testing.T) {
	const limit = 256 << 10
	size := func(annotations any) (n int) {
		for key, value := range annotations.(object) {
			n += len(key) + len(value.(string))
		}
		return n
	}
	render := func(message int, annotation int) (object, error) {
		text, err := template("--values", valueFile(t, "policy.validations", []any{object{"expression": "true", "message": strings.Repeat("m", message)}}),
			"--set", "checkConfig.enabled=false", // its pod has the configurations of both
			"--set-json", fmt.Sprintf(`ra.podAnnotations={"a":"%s"}`, strings.Repeat("a", annotation)))
		if err != nil {
			return nil, err
		}
		for document := range strings.SplitSeq(text, "\n---\n") {
			var o object
			if err := yaml.Unmarshal([]byte(document), &o); err == nil && o["kind"] == "Deployment" {
				return at(o, "spec", "template", "metadata", "annotations").(object), nil
			}
		}
		t.Fatal("no Deployment")
		return nil, nil
	}
	annotations, err := render(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	room := limit - size(annotations)
	if annotations, err = render(1+room, 0); err != nil || size(annotations) != limit {
		t.Errorf("%d bytes: %v", size(annotations), err)
	}
	if _, err = render(room, 2); err == nil || !strings.Contains(err.Error(), "the configuration and the annotations of the registration authority's pods have 262145 bytes, but Kubernetes allows 262144 (256 KiB)") {
		t.Errorf("one byte more: %v", err)
	}
}
