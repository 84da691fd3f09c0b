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
		spec := at(render(t, "--values", file, "--set", "mode=ra")["ra/Deployment"], "spec", "template", "spec").(object)
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

// The authority may only create TokenReviews.
func TestRightsOfTheAuthority(t *testing.T) {
	for _, file := range []string{os.DevNull, allValues} {
		objects := render(t, "--values", file, "--set", "mode=ra")
		want := []any{object{"apiGroups": []any{"authentication.k8s.io"}, "resources": []any{"tokenreviews"}, "verbs": []any{"create"}}}
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
	// With kubeadm, CoreDNS caches answers for 30 s. Calls take up to 25 s.
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

// The headless Service lets nodes see all ready replicas.
func TestServiceIsHeadless(t *testing.T) {
	spec := at(render(t)["ra/Service"], "spec").(object)
	if spec["clusterIP"] != "None" || spec["publishNotReadyAddresses"] != false {
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

// The NetworkPolicies allow exactly these connections.
func TestNetworkPolicies(t *testing.T) {
	pods := func(name string) any {
		return []any{object{"podSelector": object{"matchLabels": object{"app.kubernetes.io/name": name, "app.kubernetes.io/instance": "step-csi"}}}}
	}
	rule := func(way string, peers any, ports ...float64) any {
		r := object{"ports": []any{}}
		for _, port := range ports {
			r["ports"] = append(r["ports"].([]any), object{"port": port, "protocol": "TCP"})
		}
		if peers != nil {
			r[way] = peers
		}
		return r
	}
	dns := object{"ports": []any{object{"port": 53.0, "protocol": "UDP"}, object{"port": 53.0, "protocol": "TCP"}}}
	ca := []any{object{"ipBlock": object{"cidr": "192.0.2.0/24"}}}
	monitoring := []any{object{"podSelector": object{"matchLabels": object{"a": "b"}}}}
	types := []any{"Ingress", "Egress"}
	for mode, want := range map[string]map[string]object{
		"node": {"NetworkPolicy": {
			"podSelector": pods("step-csi").([]any)[0].(object)["podSelector"], "policyTypes": types,
			"ingress": []any{rule("from", monitoring, 9808)},
			"egress":  []any{dns, rule("to", ca, 443, 9000)},
		}},
		"ra": {"NetworkPolicy": {
			"podSelector": pods("step-csi").([]any)[0].(object)["podSelector"], "policyTypes": types,
			"ingress": []any{rule("from", monitoring, 9808)},
			"egress":  []any{dns, rule("to", pods("step-csi-ra"), 8443)},
		}, "ra/NetworkPolicy": {
			"podSelector": pods("step-csi-ra").([]any)[0].(object)["podSelector"], "policyTypes": types,
			"ingress": []any{rule("from", pods("step-csi"), 8443), rule("from", monitoring, 9808)},
			"egress":  []any{dns, rule("to", ca, 443, 9000), rule("to", nil, 443, 6443)},
		}},
	} {
		objects := render(t, "--set", "mode="+mode, "--set", "networkPolicy.enabled=true",
			"--set-json", `networkPolicy.to=[{"ipBlock":{"cidr":"192.0.2.0/24"}}]`,
			"--set-json", `networkPolicy.from=[{"podSelector":{"matchLabels":{"a":"b"}}}]`)
		for _, kind := range []string{"NetworkPolicy", "ra/NetworkPolicy"} {
			if got, _ := objects[kind]["spec"].(object); !reflect.DeepEqual(got, want[kind]) {
				t.Errorf("mode %s: %s:\n%v\nnot\n%v", mode, kind, got, want[kind])
			}
		}
	}
}
