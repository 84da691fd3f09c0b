package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
)

// podsServer is an API server that lists these pods in parts of two, as often as it is asked.
func podsServer(t *testing.T, pods ...core.Pod) *rest.Config {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		selector, err := fields.ParseSelector(q.Get("fieldSelector"))
		if err != nil || r.URL.Path != "/api/v1/pods" || r.Method != http.MethodGet || q.Get("limit") == "" || r.Header.Get("Authorization") != "Bearer token" {
			t.Errorf("%s %s, %v", r.Method, r.URL, err)
		}
		list := core.PodList{TypeMeta: meta.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []core.Pod{}}
		for _, p := range pods {
			if selector.Matches(fields.Set{"spec.nodeName": p.Spec.NodeName, "status.phase": string(p.Status.Phase)}) {
				list.Items = append(list.Items, p)
			}
		}
		first := 0
		if from := q.Get("continue"); from != "" {
			if _, err := fmt.Sscanf(from, "from-%d&", &first); err != nil {
				t.Errorf("continue %q: %v", from, err)
			}
		}
		if rest := list.Items[first:]; len(rest) > 2 {
			list.Continue = fmt.Sprintf("from-%d& ", first+2) // as opaque as the API server's
			list.Items = rest[:2]
		} else {
			list.Items = rest
		}
		if err := json.NewEncoder(w).Encode(list); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL, BearerToken: "token"}
}

func podOf(namespace, name, node, driver string) core.Pod {
	p := core.Pod{ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name}, Spec: core.PodSpec{NodeName: node}, Status: core.PodStatus{Phase: core.PodRunning}}
	p.Spec.Volumes = []core.Volume{{Name: "other", VolumeSource: core.VolumeSource{EmptyDir: &core.EmptyDirVolumeSource{}}}}
	if driver != "" {
		p.Spec.Volumes = append(p.Spec.Volumes, core.Volume{Name: "tls", VolumeSource: core.VolumeSource{CSI: &core.CSIVolumeSource{Driver: driver}}})
	}
	return p
}

const driverName = "csi.step-ca.io"

// Pods with mounted volumes of the driver keep it from being uninstalled. Others do not.
func TestUninstallCheck(t *testing.T) {
	done, failed, unscheduled := podOf("a", "done", "n1", driverName), podOf("a", "failed", "n1", driverName), podOf("a", "unscheduled", "", driverName)
	done.Status.Phase, failed.Status.Phase, unscheduled.Status.Phase = core.PodSucceeded, core.PodFailed, core.PodPending
	starting := podOf("b", "starting", "n2", driverName)
	starting.Status.Phase = core.PodPending
	ending := podOf("b", "x-ending", "n2", driverName) // its containers have ended, its volume is mounted
	ending.Status.Phase, ending.DeletionTimestamp = core.PodFailed, &meta.Time{Time: time.Now()}
	others := []core.Pod{done, failed, unscheduled, podOf("a", "plain", "n1", ""), podOf("a", "another", "n1", "csi.example.com"), podOf("a", driverName, "n1", "")}
	for name, test := range map[string]struct {
		pods []core.Pod
		want string // of the error
	}{
		"none":   {nil, ""},
		"others": {others, ""},
		"some": {append(others, podOf("b", "web", "n1", driverName), ending, starting),
			"pods that use volumes of csi.step-ca.io: 3\n  b/starting on the node n2\n  b/web on the node n1\n  b/x-ending on the node n2\nwithout the node plugin"},
	} {
		var stdout bytes.Buffer
		err := uninstallCheck{driverName: driverName, undo: "helm rollback a 3"}.run(t.Context(), podsServer(t, test.pods...), &stdout)
		switch {
		case test.want == "" && (err != nil || stdout.String() != "no pod uses a volume of csi.step-ca.io\n"):
			t.Errorf("%s: %v, %s", name, err, &stdout)
		case test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want) || !strings.Contains(err.Error(), "helm uninstall --no-hooks.\nTo keep the release, run: helm rollback a 3")):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of many pods, the check names the first ten.
func TestUninstallCheckOfManyPods(t *testing.T) {
	var pods []core.Pod
	for i := range 25 {
		pods = append(pods, podOf("n", fmt.Sprintf("p-%02d", 24-i), "node", driverName))
	}
	err := uninstallCheck{driverName: driverName}.run(t.Context(), podsServer(t, pods...), &bytes.Buffer{})
	if err == nil {
		t.Fatal("the check passes")
	}
	for text, there := range map[string]bool{": 25\n  n/p-00 on": true, "  n/p-09 on": true, "n/p-10": false, "  and 15 others\n": true} {
		if strings.Contains(err.Error(), text) != there {
			t.Errorf("%q is in the error: %v\n%v", text, !there, err)
		}
	}
}

// Of several releases with one driver name, each serves the nodes of its own pods.
func TestUninstallCheckOfNodePools(t *testing.T) {
	plugin, foreign := podOf("step-csi", "step-csi-edge-x", "edge-1", ""), podOf("other", "step-csi-edge-y", "main-1", "")
	plugin.Labels = map[string]string{"app.kubernetes.io/instance": "edge", "x": "y"}
	foreign.Labels = plugin.Labels // of somebody else's namespace
	another := podOf("step-csi", "step-csi-z", "main-1", "")
	another.Labels = map[string]string{"app.kubernetes.io/instance": "main"}
	own, err := labels.Parse("app.kubernetes.io/instance=edge")
	if err != nil {
		t.Fatal(err)
	}
	u := uninstallCheck{driverName: driverName, pluginNamespace: "step-csi", pluginLabels: own}
	pods := []core.Pod{podOf("a", "main", "main-1", driverName), foreign, another, plugin}
	if err := u.run(t.Context(), podsServer(t, pods...), &bytes.Buffer{}); err != nil {
		t.Errorf("pods of another pool count: %v", err)
	}
	// The node plugin's pods come last in the list.
	err = u.run(t.Context(), podsServer(t, append([]core.Pod{podOf("a", "edge", "edge-1", driverName)}, pods...)...), &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), ": 1\n  a/edge on the node edge-1\n") {
		t.Errorf("the pod of the pool: %v", err)
	}
}

// The check does not pass if it does not know: without an answer, with a refusal, and with
// an answer that is not whole.
func TestUninstallCheckFails(t *testing.T) {
	for name, test := range map[string]struct {
		status       int
		answer, want string
	}{
		"no rights":        {http.StatusForbidden, `{"kind":"Status","message":"pods is forbidden: User x"}`, "403 Forbidden: pods is forbidden: User x"},
		"no message":       {http.StatusBadGateway, "<html>", "502 Bad Gateway"},
		"cut off":          {http.StatusOK, `{"kind":"PodList","items":[`, "EOF"},
		"cut off at a pod": {http.StatusOK, `{"items":[{"metadata":{"name":"a"}}`, "EOF"},
		"cut off at last":  {http.StatusOK, `{"items":[]`, "EOF"},
		"no list":          {http.StatusOK, `[]`, "not a list of pods"},
		"no pods":          {http.StatusOK, `{"items":{}}`, "not a list of pods"},
		"nothing":          {http.StatusOK, ``, "EOF"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.status)
			fmt.Fprint(w, test.answer)
		}))
		err := uninstallCheck{driverName: driverName}.run(t.Context(), &rest.Config{Host: s.URL}, &bytes.Buffer{})
		s.Close()
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "find the pods that use volumes of csi.step-ca.io") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (uninstallCheck{driverName: driverName}).run(t.Context(), &rest.Config{Host: "http://127.0.0.1:1"}, &bytes.Buffer{}); err == nil {
		t.Error("without an API server, the check passes")
	}
}

// Pods as large as users can make them do not fill the memory of the check.
func TestUninstallCheckOfLargePods(t *testing.T) {
	annotations := strings.Repeat("x", 1<<20)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"items":[`)
		for i := range 300 {
			if i > 0 {
				fmt.Fprint(w, ",")
			}
			fmt.Fprintf(w, `{"metadata":{"name":"p","annotations":{"a":"%s"}},"spec":{"volumes":[{"csi":{"driver":"x"}}]}}`, annotations)
		}
		fmt.Fprint(w, `]}`)
	}))
	defer s.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := (uninstallCheck{driverName: driverName}).run(t.Context(), &rest.Config{Host: s.URL}, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 100<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
}

func TestUninstallCheckCommandLine(t *testing.T) {
	for args, want := range map[string]string{
		"":                       "this command runs in a pod",
		"--plugin-namespace=a":   "set both, or none",
		"--plugin-labels=a=b":    "set both, or none",
		"--plugin-labels=!!":     "--plugin-labels: ",
		"--driver-name=csi.x.io": "this command runs in a pod",
	} {
		t.Setenv("KUBERNETES_SERVICE_HOST", "")
		var stdout, stderr bytes.Buffer
		if err := run(t.Context(), append([]string{"uninstall-check"}, strings.Fields(args)...), &stdout, &stderr); err == nil || errors.Is(err, errUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
