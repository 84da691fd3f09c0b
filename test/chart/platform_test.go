package chart

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func imagesOf(objects map[string]object) (images []string) {
	for _, kind := range []string{"DaemonSet", "ra/Deployment"} {
		for _, c := range at(objects[kind], "spec", "template", "spec", "containers").([]any) {
			images = append(images, at(c, "image").(string))
		}
	}
	for _, c := range at(objects["hook"], "spec", "containers").([]any) {
		images = append(images, at(c, "image").(string))
	}
	return images
}

// A registry takes the place of the one at the front of the repository.
func TestRegistry(t *testing.T) {
	for values, want := range map[string]string{
		"image.tag=v1": "ghcr.io/flexstack/step-csi:v1",
		"image.tag=v1,image.registry=mirror.example.com":                       "mirror.example.com/flexstack/step-csi:v1",
		"image.tag=v1,image.registry=mirror.example.com/ghcr":                  "mirror.example.com/ghcr/flexstack/step-csi:v1",
		"image.tag=v1,global.imageRegistry=localhost:5000":                     "localhost:5000/flexstack/step-csi:v1",
		"image.tag=v1,global.imageRegistry=a.b,image.registry=c":               "c/flexstack/step-csi:v1",
		"image.tag=v1,image.registry=a.b,image.repository=localhost/x":         "a.b/x:v1",
		"image.tag=v1,image.registry=a.b,image.repository=r:5000/tls/step-csi": "a.b/tls/step-csi:v1",
		"image.tag=v1,image.registry=a.b,image.repository=tls/step-csi":        "a.b/tls/step-csi:v1",
		"image.tag=v1,image.registry=a.b,image.repository=step-csi":            "a.b/step-csi:v1",
		"image.registry=a.b,image.digest=sha256:" + fingerprint:                "a.b/flexstack/step-csi@sha256:" + fingerprint,
	} {
		if got := imagesOf(render(t, "--set", values)); !slices.Equal(got, []string{want, want, want}) {
			t.Errorf("%s: %v, want %s", values, got, want)
		}
	}
}

// All pods pull with the Secrets of the chart and of its parent, in both forms that parent
// charts use.
func TestPullSecrets(t *testing.T) {
	objects := render(t, "--set-json", `global.imagePullSecrets=["a",{"name":"b"}]`, "--set-json", `imagePullSecrets=[{"name":"c"},{"name":"b"}]`)
	want := []any{object{"name": "c"}, object{"name": "b"}, object{"name": "a"}}
	for kind, spec := range map[string]any{
		"DaemonSet":     at(objects["DaemonSet"], "spec", "template", "spec"),
		"ra/Deployment": at(objects["ra/Deployment"], "spec", "template", "spec"),
		"hook":          at(objects["hook"], "spec"),
	} {
		if got := at(spec, "imagePullSecrets"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}

// The program knows the flags that the chart sets, and gets the format of logs only if
// it is not the default one.
func TestArguments(t *testing.T) {
	for _, values := range []string{os.DevNull, allValues} {
		objects := render(t, "--values", values)
		for _, kind := range []string{"DaemonSet", "ra/Deployment"} {
			var args []string
			for _, arg := range at(at(objects[kind], "spec", "template", "spec", "containers").([]any)[0], "args").([]any) {
				args = append(args, arg.(string))
			}
			// The flags before --help are parsed, too.
			if _, err := command(".", stepCSI, append(args, "--help")...); err != nil {
				t.Errorf("%s of %s: %v", kind, values, err)
			}
			if got := slices.Contains(args, "--logging-format=json"); got != (values == allValues) || strings.Contains(strings.Join(args, " "), "format=text") {
				t.Errorf("%s of %s: %v", kind, values, args)
			}
		}
	}
}

// In the node's network, the registration authority has the ports of its node: the chart
// refuses ports that are taken, and replaces no replica before the port is free. There is
// no NetworkPolicy that would only seem to protect it.
func TestHostNetworkOfTheAuthority(t *testing.T) {
	objects := render(t, "--set", "ra.hostNetwork=true,networkPolicy.restrictEgress=true,networkPolicy.nodeCIDRs={192.0.2.0/24}")
	pod := at(objects["ra/Deployment"], "spec", "template", "spec")
	if at(pod, "hostNetwork") != true || at(pod, "dnsPolicy") != "ClusterFirstWithHostNet" {
		t.Errorf("hostNetwork %v, dnsPolicy %v", at(pod, "hostNetwork"), at(pod, "dnsPolicy"))
	}
	if got, want := at(objects["ra/Deployment"], "spec", "strategy", "rollingUpdate"), (object{"maxUnavailable": 1.0, "maxSurge": 0.0}); !reflect.DeepEqual(got, want) {
		t.Errorf("rollingUpdate: %v, want %v", got, want)
	}
	if objects["ra/NetworkPolicy"] != nil {
		t.Error("there is a NetworkPolicy for pods in the node's network")
	}
	to := at(at(objects["NetworkPolicy"], "spec", "egress").([]any)[1], "to").([]any)
	if want := (object{"ipBlock": object{"cidr": "192.0.2.0/24"}}); !slices.ContainsFunc(to, func(o any) bool { return reflect.DeepEqual(o, want) }) {
		t.Errorf("node plugins cannot reach the nodes of the registration authority: %v", to)
	}

	both := render(t, "--set", "hostNetwork=true,ra.hostNetwork=true,ra.httpPort=9809,networkPolicy.nodeCIDRs={192.0.2.0/24}")
	taken := map[int32]string{}
	for _, kind := range []string{"DaemonSet", "ra/Deployment"} {
		for name, port := range portsOf(both[kind]) {
			if taken[port] != "" {
				t.Errorf("%s of the %s and %s have the port %d", name, kind, taken[port], port)
			}
			taken[port] = name + " of the " + kind
		}
	}

	const nodes = ",networkPolicy.nodeCIDRs={192.0.2.0/24}"
	for values, want := range map[string]string{
		"ra.hostNetwork=true,networkPolicy.restrictEgress=true":                      "networkPolicy.nodeCIDRs: with ra.hostNetwork and restrictEgress",
		"hostNetwork=true,ra.hostNetwork=true" + nodes:                               "ra.httpPort: with hostNetwork and ra.hostNetwork",
		"hostNetwork=true,ra.hostNetwork=true,ra.httpPort=9808" + nodes:              "ra.httpPort: with hostNetwork and ra.hostNetwork",
		"hostNetwork=true,ra.hostNetwork=true,ra.httpPort=9809,ra.port=9808" + nodes: "ra.port: with hostNetwork and ra.hostNetwork",
		"ra.httpPort=8443": "ra.port and ra.httpPort are the same",
		"ra.httpPort=80":   "ra.httpPort: 80 is not a port from 1024",
	} {
		if _, err := template("--set", values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", values, err)
		}
	}
}

// Without RBAC objects in the chart, the command of docs/platform.md prints what somebody
// else creates: the same objects, and none that Helm creates, too.
func TestWithoutRBAC(t *testing.T) {
	with, without := render(t, openshiftAPI), render(t, openshiftAPI, "--set", "rbac.create=false")
	missing := []string{"Role", "RoleBinding", "ra/ClusterRole", "ra/ClusterRoleBinding",
		// The check before an uninstall would need the right to list pods.
		"uninstall/ClusterRole", "uninstall/ClusterRoleBinding", "uninstall/Job", "uninstall/ServiceAccount"}
	for kind := range with {
		if slices.Contains(missing, kind) == (without[kind] != nil) {
			t.Errorf("with rbac.create=false, the chart makes a %s: %v", kind, without[kind] != nil)
		}
	}
	_, script, _ := strings.Cut(read(t, root+"/docs/platform.md"), "```sh\nhelm template step-csi ")
	script, _, found := strings.Cut(script, " > rbac.yaml\n```")
	if !found {
		t.Fatal("docs/platform.md has no command that prints the rights")
	}
	script = strings.Replace(strings.ReplaceAll(script, "\\\n", ""), "deploy/charts/step-csi", chart, 1)
	out, err := command(".", helm, append([]string{"template", "step-csi"}, strings.Fields(script)...)...)
	if err != nil {
		t.Fatal(err)
	}
	printed := objects(t, out)
	if got, want := slices.Sorted(maps.Keys(printed)), []string{"ra/ClusterRole", "ra/ClusterRoleBinding"}; !slices.Equal(got, want) {
		t.Errorf("the command prints %v, want %v", got, want)
	}
	text, err := templateOf("step-csi", "step-csi")
	if err != nil {
		t.Fatal(err)
	}
	for kind, o := range printed {
		if want := objects(t, text)[kind]; !reflect.DeepEqual(o, want) {
			t.Errorf("the command prints the %s %v, and the chart makes %v", kind, o, want)
		}
	}
	if got := notes(t, "--set", "rbac.create=false"); !strings.Contains(got, "ra.serviceAccount.create=false,ra.serviceAccount.name=step-csi-ra") {
		t.Errorf("the notes lack the command:\n%s", got)
	}
}

// Two drivers in one namespace share no object, directory or socket.
func TestReleasesOfOneNamespace(t *testing.T) {
	for name, options := range map[string]string{
		"default":    "mode=ra",
		"mode node":  "mode=node",
		"monitoring": "monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true,networkPolicy.restrictEgress=true",
	} {
		t.Run(name, func(t *testing.T) {
			one := releaseOf(t, "step-csi", "--set", options, openshiftAPI)
			other := releaseOf(t, "blue", "--set", "driverName=blue.example.com,"+options, openshiftAPI)
			if names := inBoth(one, other); len(names) > 0 {
				t.Errorf("both releases make %v", names)
			}
			for kind, path := range map[string][]string{
				"DaemonSet":     {"spec", "selector", "matchLabels"},
				"ra/Deployment": {"spec", "selector", "matchLabels"},
				"ra/Service":    {"spec", "selector"},
			} {
				if one[kind] == nil {
					continue
				}
				for _, workload := range []string{"DaemonSet", "ra/Deployment"} {
					if other[workload] != nil && selects(at(one[kind], path...).(object), at(other[workload], "spec", "template", "metadata", "labels")) {
						t.Errorf("the %s of one release selects the %s of the other", kind, workload)
					}
				}
			}
			directories := func(o map[string]object) (paths []string) {
				for _, v := range at(o["DaemonSet"], "spec", "template", "spec", "volumes").([]any) {
					if path, ok := at(v, "hostPath", "path").(string); ok && strings.Contains(path, "/plugins/") {
						paths = append(paths, path)
					}
				}
				return paths
			}
			if a, b := directories(one), directories(other); len(a) != 1 || len(b) != 1 || a[0] == b[0] {
				t.Errorf("the directories %v and %v", a, b)
			}
		})
	}
}

// If another release has the driver, the chart says which one, and what to change.
func TestDriverOfAnotherRelease(t *testing.T) {
	for name, c := range map[string]struct {
		release, namespace, values string
		refused                    bool
	}{
		"another release":                {"tls", "elsewhere", "mode=ra", true},
		"of this name, elsewhere":        {"step-csi", "elsewhere", "mode=ra", true},
		"this release":                   {"step-csi", "step-ca", "mode=ra", false},
		"none, so that Helm itself asks": {"", "", "mode=ra", false},
		"of another node pool":           {"tls", "elsewhere", "csiDriver.create=false", false},
		"another driver":                 {"tls", "elsewhere", "driverName=blue.example.com", false},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := object{}
			if c.release != "" {
				annotations = object{"meta.helm.sh/release-name": c.release, "meta.helm.sh/release-namespace": c.namespace}
			}
			cluster := clusterWith(t, object{"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": object{"name": "csi.step-ca.io", "annotations": annotations}})
			_, err := template("--dry-run=server", "--disable-openapi-validation", "--kubeconfig", cluster, "--set", c.values)
			const want = "in the namespace elsewhere already has the driver csi.step-ca.io. Upgrade that release, or set driverName"
			if c.refused && (err == nil || !strings.Contains(err.Error(), want)) || !c.refused && !unknownKind(err) {
				t.Error(err)
			}
		})
	}
}

// Additional objects are templates, as objects and as texts.
func TestExtraObjects(t *testing.T) {
	values := valueFile(t, "extraObjects", []any{
		object{"apiVersion": "example.com/v1", "kind": "Password", "metadata": object{"name": "{{ .Release.Name }}-a"}},
		"apiVersion: example.com/v1\nkind: Vault\nmetadata:\n  name: {{ include \"step-csi.raName\" . }}-b\n",
	})
	objects := render(t, "--values", values)
	for kind, want := range map[string]string{"Password": "step-csi-a", "Vault": "step-csi-ra-b"} {
		if got := at(objects[kind], "metadata", "name"); got != want {
			t.Errorf("the %s is named %v, want %s", kind, got, want)
		}
	}
}
