package chart

import (
	"os"
	"reflect"
	"slices"
	"testing"
)

// The authority meets the rules of the Pod Security level restricted
// (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
func TestAuthorityIsRestricted(t *testing.T) {
	for _, file := range append(valueFiles(t), os.DevNull) {
		spec := at(render(t, "--values", file, "--set", "mode=ra,openshift.scc.enabled=false")["ra/Deployment"], "spec", "template", "spec").(object)
		for _, key := range []string{"hostNetwork", "hostPID", "hostIPC", "initContainers"} {
			if spec[key] != nil {
				t.Errorf("%s: %s is %v", file, key, spec[key])
			}
		}
		// The authority reads the files of the volume by its group.
		want := object{
			"runAsNonRoot": true, "runAsUser": 65532.0, "runAsGroup": 65532.0, "fsGroup": 65532.0,
			"seccompProfile": object{"type": "RuntimeDefault"},
		}
		if got := spec["securityContext"]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: securityContext of the pod: %v", file, got)
		}
		containers := spec["containers"].([]any)
		want = object{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": object{"drop": []any{"ALL"}}}
		if got := at(containers[0], "securityContext"); len(containers) != 1 || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %d containers, securityContext: %v", file, len(containers), got)
		}
		for _, v := range spec["volumes"].([]any) {
			if v := v.(object); len(v) != 2 || at(v, "projected", "defaultMode") != 0o440+0.0 {
				t.Errorf("%s: volume %v", file, v)
			}
		}
	}
}

// The authority may only create TokenReviews, and events unless they are turned off: it can
// neither read nor change anything.
func TestRightsOfTheAuthority(t *testing.T) {
	for _, file := range []string{os.DevNull, allValues} {
		objects := render(t, "--values", file, "--set", "mode=ra,openshift.scc.enabled=false")
		want := []any{object{"apiGroups": []any{"authentication.k8s.io"}, "resources": []any{"tokenreviews"}, "verbs": []any{"create"}}}
		if file != allValues { // which turns events off
			want = append(want, object{"apiGroups": []any{""}, "resources": []any{"events"}, "verbs": []any{"create"}})
		}
		if got := objects["ra/ClusterRole"]["rules"]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", file, got)
		}
		pod := at(objects["ra/Deployment"], "spec", "template", "spec")
		account := at(pod, "serviceAccountName")
		want = []any{object{"kind": "ServiceAccount", "name": account, "namespace": "step-ca"}}
		if got := objects["ra/ClusterRoleBinding"]["subjects"]; account == nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", file, got)
		}
		if account == at(objects["DaemonSet"], "spec", "template", "spec", "serviceAccountName") {
			t.Errorf("%s: the plugin has the authority's service account", file)
		}
		wantRole := object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": at(objects["ra/ClusterRole"], "metadata", "name")}
		if got := objects["ra/ClusterRoleBinding"]["roleRef"]; !reflect.DeepEqual(got, wantRole) {
			t.Errorf("%s: %v", file, got)
		}
		if at(pod, "automountServiceAccountToken") != true {
			t.Errorf("%s: the authority has no token for the API server", file)
		}
		for kind := range objects {
			if slices.Contains([]string{"ClusterRole", "Role", "ra/Role", "ClusterRoleBinding", "RoleBinding", "ra/RoleBinding"}, kind) {
				t.Errorf("%s: the chart makes a %s", file, kind)
			}
		}
	}
}

// A replica always answers. The replicas are spread over nodes, are not all drained or
// replaced at once, and a stopping replica serves until the nodes know the others.
func TestAuthorityStays(t *testing.T) {
	objects := render(t)
	spec := at(objects["ra/Deployment"], "spec").(object)
	if spec["replicas"].(float64) < 2 {
		t.Errorf("the authority has %v replicas, want at least 2", spec["replicas"])
	}
	if want := (object{"type": "RollingUpdate", "rollingUpdate": object{"maxUnavailable": 0.0, "maxSurge": 1.0}}); !reflect.DeepEqual(spec["strategy"], want) {
		t.Errorf("strategy: %v", spec["strategy"])
	}
	if got := at(objects["ra/PodDisruptionBudget"], "spec", "maxUnavailable"); got != 1.0 {
		t.Errorf("maxUnavailable is %v, want 1", got)
	}
	pod := at(spec, "template", "spec")
	spread := at(pod, "topologySpreadConstraints").([]any)
	if len(spread) != 1 || at(spread[0], "topologyKey") != "kubernetes.io/hostname" || at(spread[0], "whenUnsatisfiable") != "ScheduleAnyway" {
		t.Errorf("spread: %v", spread)
	}
	container := at(pod, "containers").([]any)[0]
	// A replacement on another node starts within half a minute. Calls take up to 25 s.
	pause, all := at(container, "lifecycle", "preStop", "sleep", "seconds"), at(pod, "terminationGracePeriodSeconds").(float64)
	if pause != 30.0 || all-30 < 25 {
		t.Errorf("the grace period is %v s, and preStop takes %v s of it", all, pause)
	}
	for probe, path := range map[string]string{"livenessProbe": "/livez", "readinessProbe": "/readyz"} {
		if got := at(container, probe, "httpGet"); !reflect.DeepEqual(got, object{"path": path, "port": "http"}) {
			t.Errorf("%s: %v", probe, got)
		}
	}
}

// The headless Service lets nodes see all replicas, also those that are not ready: they
// say why.
func TestServiceIsHeadless(t *testing.T) {
	spec := at(render(t)["ra/Service"], "spec").(object)
	if spec["clusterIP"] != "None" || spec["publishNotReadyAddresses"] != true {
		t.Errorf("%v", spec)
	}
}

// The chart adds a selector of the replicas only to constraints without a selector.
func TestSpread(t *testing.T) {
	constraints := at(render(t, "--values", allValues)["ra/Deployment"], "spec", "template", "spec", "topologySpreadConstraints")
	want := []any{object{
		"maxSkew": 2.0, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
		"labelSelector": object{"matchLabels": object{"example.com/l": "ra"}},
	}}
	if !reflect.DeepEqual(constraints, want) {
		t.Errorf("%v", constraints)
	}
}

// With runOn: control-plane, the replicas run on control-plane nodes, whatever else the
// values select, and whatever value the label has.
func TestRunOnControlPlane(t *testing.T) {
	own := object{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}
	zone := object{"key": "topology.kubernetes.io/zone", "operator": "In", "values": []any{"a"}}
	disk := object{"key": "disk", "operator": "Exists"}
	preferred := []any{object{"weight": 1.0, "preference": object{"matchExpressions": []any{disk}}}}
	terms := func(expressions ...[]any) object {
		all := []any{}
		for _, e := range expressions {
			all = append(all, object{"matchExpressions": e})
		}
		return object{"nodeSelectorTerms": all}
	}
	const required = "requiredDuringSchedulingIgnoredDuringExecution"
	for name, c := range map[string]struct{ affinity, want object }{
		"nothing": {object{}, object{"nodeAffinity": object{required: terms([]any{own})}}},
		"alternatives": {
			object{"nodeAffinity": object{required: terms([]any{zone}, []any{disk})}},
			object{"nodeAffinity": object{required: terms([]any{zone, own}, []any{disk, own})}},
		},
		"others": {
			object{"podAntiAffinity": object{"x": "y"}, "nodeAffinity": object{"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
			object{"podAntiAffinity": object{"x": "y"}, "nodeAffinity": object{"preferredDuringSchedulingIgnoredDuringExecution": preferred, required: terms([]any{own})}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := at(render(t, "--set", "ra.runOn=control-plane", "--set", "ra.tolerations[0].key=x",
				"--values", valueFile(t, "ra.affinity", c.affinity))["ra/Deployment"], "spec", "template", "spec")
			if got := at(pod, "affinity"); !reflect.DeepEqual(got, c.want) {
				t.Errorf("affinity: %v, want %v", got, c.want)
			}
			if got, want := at(pod, "tolerations"), []any{object{"key": "x"}, own}; !reflect.DeepEqual(got, any(want)) {
				t.Errorf("tolerations: %v, want %v", got, want)
			}
			if got, want := at(pod, "nodeSelector"), (object{"kubernetes.io/os": "linux"}); !reflect.DeepEqual(got, want) {
				t.Errorf("nodeSelector: %v, want %v", got, want)
			}
		})
	}
	// By default, the chart adds nothing.
	pod := at(render(t)["ra/Deployment"], "spec", "template", "spec").(object)
	if pod["affinity"] != nil || pod["tolerations"] != nil {
		t.Errorf("by default: affinity %v, tolerations %v", pod["affinity"], pod["tolerations"])
	}
}
