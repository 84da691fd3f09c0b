package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// as parses an object of the chart strictly.
func as[T any](t *testing.T, o object) *T {
	t.Helper()
	if o == nil {
		t.Fatalf("the chart makes no %T", *new(T))
	}
	parsed := new(T)
	if err := yaml.UnmarshalStrict([]byte(text(t, o)), parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

// The Jobs of the hooks run once, end before Helm's time-out, and have the least rights. Helm
// prints their logs if they fail.
func TestHookJobs(t *testing.T) {
	for _, values := range append(valueFiles(t), os.DevNull) {
		for _, mode := range []string{"ra", "node"} {
			t.Run(filepath.Base(values)+"/"+mode, func(t *testing.T) {
				t.Parallel()
				objects := render(t, "--values", values, "--set", "mode="+mode+",checkConfig.enabled=true,uninstallCheck.enabled=true,rbac.create=true,openshift.scc.enabled=false")
				for kind, token := range map[string]bool{"check/Job": false, "uninstall/Job": true} {
					job := as[batch.Job](t, objects[kind])
					spec, pod := job.Spec, job.Spec.Template.Spec
					if *spec.BackoffLimit != 0 || *spec.ActiveDeadlineSeconds > 90 || pod.RestartPolicy != core.RestartPolicyNever {
						t.Errorf("%s: it does not fail at once: %+v", kind, spec)
					}
					if a := job.Annotations; a["helm.sh/hook-output-log-policy"] != "hook-failed" || a["helm.sh/hook-delete-policy"] != "before-hook-creation,hook-succeeded" {
						t.Errorf("%s: %v", kind, a)
					}
					if *pod.AutomountServiceAccountToken != token {
						t.Errorf("%s: token of the service account: %v", kind, !token)
					}
					if s := pod.SecurityContext; !*s.RunAsNonRoot || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault || *s.FSGroup != 65532 || *s.RunAsUser != 65532 {
						t.Errorf("%s: %+v", kind, s)
					}
					for _, c := range pod.Containers {
						if s := c.SecurityContext; *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !reflect.DeepEqual(s.Capabilities.Drop, []core.Capability{"ALL"}) {
							t.Errorf("%s: %+v", kind, s)
						}
					}
					for _, v := range pod.Volumes {
						if v.Projected == nil {
							t.Errorf("%s: the volume %s is not projected", kind, v.Name)
						}
					}
				}
			})
		}
	}
}

// All containers leave the end of their logs in their status, where kubectl describe shows it.
func TestTerminationMessages(t *testing.T) {
	for kind, o := range render(t) {
		spec := at(o, "spec", "template", "spec")
		if kind == "hook" {
			spec = at(o, "spec")
		}
		containers, _ := at(spec, "containers").([]any)
		if pods := strings.HasSuffix(kind, "Job") || kind == "hook" || kind == "DaemonSet" || kind == "ra/Deployment"; pods != (len(containers) > 0) {
			t.Errorf("%s has %d containers", kind, len(containers))
		}
		for _, c := range containers {
			if at(c, "terminationMessagePolicy") != "FallbackToLogsOnError" {
				t.Errorf("%s: %v", kind, at(c, "terminationMessagePolicy"))
			}
		}
	}
}

// checkFiles makes the files of a container of the Job that checks the configuration, like
// the kubelet does if the Secrets and ConfigMaps exist that exists accepts.
func checkFiles(t *testing.T, job object, container string, exists func(source any) bool) string {
	t.Helper()
	directory := t.TempDir()
	put := func(path, content string) {
		file := filepath.Join(directory, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, volume := range at(job, "spec", "template", "spec", "volumes").([]any) {
		if at(volume, "name") != container {
			continue
		}
		for _, source := range at(volume, "projected", "sources").([]any) {
			files, _ := at(source, "downwardAPI", "items").([]any)
			for _, file := range files {
				content := "metadata.name"
				if _, key, ok := strings.Cut(at(file, "fieldRef", "fieldPath").(string), "metadata.annotations['"); ok {
					content = at(job, "spec", "template", "metadata", "annotations", strings.TrimSuffix(key, "']")).(string)
				}
				put(at(file, "path").(string), content)
			}
			if at(source, "downwardAPI") != nil {
				continue
			}
			if at(source, "secret", "optional") != true && at(source, "configMap", "optional") != true {
				t.Errorf("without the source %v, the pod would wait and say nothing", source)
			}
			if !exists(source) {
				continue
			}
			for _, item := range items(source) {
				content := "secret\n"
				if base := filepath.Base(item.path); base == "ca.crt" || base == "server.crt" || base == "additional.crt" {
					content = read(t, "testdata/root_ca.crt")
				}
				put(item.path, content)
			}
		}
	}
	return directory
}

// runCheck runs a container of the Job on the files in the directory.
func runCheck(job object, container, directory string) (string, error) {
	for _, c := range at(job, "spec", "template", "spec", "containers").([]any) {
		if at(c, "name") != container {
			continue
		}
		var args []string
		for _, arg := range at(c, "args").([]any) {
			args = append(args, strings.Replace(arg.(string), "/etc/step-csi/", directory+"/", 1))
		}
		return command(".", stepCSI, args...)
	}
	return "", fmt.Errorf("no container %s", container)
}

func all(any) bool { return true }

// With all Secrets and ConfigMaps, the check passes: for what the pods would accept, and for
// both of their configurations.
func TestCheckPasses(t *testing.T) {
	for _, values := range append(valueFiles(t), os.DevNull, "testdata/no-default.yaml") {
		for mode, containers := range map[string][]string{"ra": {"node", "ra"}, "node": {"node"}} {
			t.Run(filepath.Base(values)+"/"+mode, func(t *testing.T) {
				t.Parallel()
				objects := render(t, "--values", values, "--set", "mode="+mode+",checkConfig.enabled=true")
				job := objects["check/Job"]
				if got := len(at(job, "spec", "template", "spec", "containers").([]any)); got != len(containers) {
					t.Errorf("%d containers", got)
				}
				for _, container := range containers {
					workload := map[string]string{"node": "DaemonSet", "ra": "ra/Deployment"}[container]
					directory := checkFiles(t, job, container, all)
					out, err := runCheck(job, container, directory)
					if err != nil || !strings.HasPrefix(out, directory+"/step-csi.yaml: ok\n") {
						t.Errorf("%s: %v %s", container, err, out)
					}
					// It is the configuration of the pods, byte by byte.
					if read(t, directory+"/step-csi.yaml") != configAnnotation(t, objects[workload]) {
						t.Errorf("%s: the checked configuration differs from that of the %s", container, workload)
					}
				}
			})
		}
	}
}

// What is wrong with the configuration fails the check, with a sentence.
func TestCheckFails(t *testing.T) {
	without := func(name string) func(any) bool {
		return func(source any) bool {
			return at(source, "secret", "name") != name && at(source, "configMap", "name") != name
		}
	}
	for name, test := range map[string]struct {
		values, container string
		exists            func(any) bool
		want              string
	}{
		"no Secret": {"", "ra", without("step-certificates-provisioner-password"),
			`issuers/default/password: no such file or directory: there is no key password in the Secret step-certificates-provisioner-password of the namespace step-ca (in the chart: issuers.default.provisioner.passwordSecret)`},
		"no root, authority": {"", "ra", without("step-certificates-certs"),
			`there is no key root_ca.crt in the ConfigMap step-certificates-certs of the namespace step-ca (in the chart: issuers.default.caBundle)`},
		"no root, node plugin": {"", "node", without("step-certificates-certs"),
			`there is no key root_ca.crt in the ConfigMap step-certificates-certs of the namespace step-ca (in the chart: issuers.default.caBundle)`},
		"no Secret, mode node": {"mode=node", "node", without("step-certificates-provisioner-password"), "(in the chart: issuers.default.provisioner.passwordSecret)"},
		"no key of a provisioner": {"issuers.default.provisioner.keySecret.name=k", "ra", without("k"),
			`there is no key key in the Secret k of the namespace step-ca (in the chart: issuers.default.provisioner.keySecret)`},
		"no certificate of a provisioner": {"issuers.default.provisioner.type=x5c,issuers.default.provisioner.certificateSecret.name=c", "ra", without("c"),
			`there is no key tls.crt in the Secret c of the namespace step-ca (in the chart: issuers.default.provisioner.certificateSecret)`},
		"no roots of an ingress": {"issuers.default.serverTLS=bundle", "ra", without("step-csi-server-roots"),
			`(in the chart: issuers.default.serverTLSBundle)`},
		"no additional roots": {"issuers.default.additionalRoots.configMap=trust-manager", "node", without("trust-manager"),
			`there is no key ca.crt in the ConfigMap trust-manager of the namespace step-ca (in the chart: issuers.default.additionalRoots)`},
		"CEL":              {"policy.validations[0].expression=request.dnsName", "ra", all, "undefined field 'dnsName'"},
		"CEL, mode node":   {"mode=node,policy.validations[0].expression=request.dnsName", "node", all, "undefined field 'dnsName'"},
		"a flag":           {"ra.extraArgs[0]=--verbose", "ra", all, "-verbose"},
		"a flag of a node": {"extraArgs[0]=--verbose", "node", all, "-verbose"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job := render(t, "--set", test.values)["check/Job"]
			out, err := runCheck(job, test.container, checkFiles(t, job, test.container, test.exists))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v\n%s\nwant %s", err, out, test.want)
			}
		})
	}
}

// An empty or a damaged root is refused with the reason, and with the name of its ConfigMap.
func TestCheckOfAnEmptyRoot(t *testing.T) {
	job := render(t)["check/Job"]
	for content, want := range map[string]string{"": "ca.crt is empty: the file is the key", "-----BEGIN\n": "it has no certificate in PEM"} {
		for _, container := range []string{"node", "ra"} {
			directory := checkFiles(t, job, container, all)
			if err := os.WriteFile(directory+"/issuers/default/ca.crt", []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := runCheck(job, container, directory)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `the file is the key root_ca.crt in the ConfigMap step-certificates-certs`) {
				t.Errorf("%s, %q: %v", container, content, err)
			}
		}
	}
}

// The pod with the provisioner's password runs only where the pods run that have it.
func TestPlacesOfHooks(t *testing.T) {
	for name, test := range map[string]struct {
		values      []string
		selector    map[string]string
		tolerations []core.Toleration
		like        string // the workload that has the same affinity
	}{
		"mode ra": {[]string{"--set", "ra.nodeSelector.trusted=yes,nodeSelector.pool=x", "--set-json", `ra.tolerations=[{"key":"a","operator":"Exists"}]`},
			map[string]string{"kubernetes.io/os": "linux", "trusted": "yes"}, []core.Toleration{{Key: "a", Operator: "Exists"}}, "ra/Deployment"},
		"control plane": {[]string{"--set", "ra.runOn=control-plane"},
			map[string]string{"kubernetes.io/os": "linux"}, []core.Toleration{{Key: "node-role.kubernetes.io/control-plane", Operator: "Exists"}}, "ra/Deployment"},
		"mode node": {[]string{"--set", "mode=node,nodeSelector.pool=x,ra.nodeSelector.trusted=yes", "--set-json", `hooks.tolerations=[{"key":"b"}]`, "--set-json", `affinity={"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[]}}`},
			map[string]string{"kubernetes.io/os": "linux", "pool": "x"}, []core.Toleration{{Key: "node-role.kubernetes.io/control-plane", Operator: "Exists"}, {Key: "b"}}, "DaemonSet"},
		"another release's authority": {[]string{"--set", "ra.existing.release=other,nodeSelector.pool=x", "--set-json", `tolerations=[{"key":"c"}]`},
			map[string]string{"kubernetes.io/os": "linux", "pool": "x"}, []core.Toleration{{Key: "c"}}, "DaemonSet"},
	} {
		objects := render(t, test.values...)
		for _, kind := range []string{"check/Job", "uninstall/Job"} {
			pod := as[batch.Job](t, objects[kind]).Spec.Template.Spec
			if !reflect.DeepEqual(pod.NodeSelector, test.selector) || !slices.Equal(pod.Tolerations, test.tolerations) {
				t.Errorf("%s: the pod of %s runs on %v, with %v", name, kind, pod.NodeSelector, pod.Tolerations)
			}
			if got, want := at(objects[kind], "spec", "template", "spec", "affinity"), at(objects[test.like], "spec", "template", "spec", "affinity"); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: the pod of %s has the affinity %v, want %v", name, kind, got, want)
			}
		}
	}
}

// In mode ra, the part of the check for the node plugin has no password, and the check of a
// release without an authority of its own has none at all.
func TestCheckHasOnlyItsSecrets(t *testing.T) {
	job := render(t)["check/Job"]
	for _, v := range at(job, "spec", "template", "spec", "volumes").([]any) {
		if has := strings.Contains(text(t, v), `"secret"`); has != (at(v, "name") == "ra") {
			t.Errorf("the volume %s has a Secret: %v", at(v, "name"), has)
		}
	}
	if job := render(t, "--set", "ra.existing.release=other")["check/Job"]; strings.Contains(text(t, job), `"secret"`) {
		t.Error("the check of a release without an authority has a Secret")
	}
}

// The check before an uninstall may list pods, and nothing else, and only while it runs.
func TestUninstallRights(t *testing.T) {
	objects := render(t, "--set", "driverName=tls.example.com")
	role, binding := as[rbac.ClusterRole](t, objects["uninstall/ClusterRole"]), as[rbac.ClusterRoleBinding](t, objects["uninstall/ClusterRoleBinding"])
	if want := []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}}; !reflect.DeepEqual(role.Rules, want) {
		t.Errorf("rights: %v", role.Rules)
	}
	job := as[batch.Job](t, objects["uninstall/Job"])
	account := as[core.ServiceAccount](t, objects["uninstall/ServiceAccount"])
	if binding.RoleRef.Name != role.Name || len(binding.Subjects) != 1 || binding.Subjects[0].Name != account.Name || binding.Subjects[0].Namespace != account.Namespace || job.Spec.Template.Spec.ServiceAccountName != account.Name {
		t.Errorf("%+v", binding)
	}
	for _, kind := range []string{"ServiceAccount", "ClusterRole", "ClusterRoleBinding"} {
		annotations := at(objects["uninstall/"+kind], "metadata", "annotations")
		if at(annotations, "helm.sh/hook-weight") != "-1" || at(annotations, "helm.sh/hook-delete-policy") != "before-hook-creation,hook-succeeded,hook-failed" {
			t.Errorf("%s: %v", kind, annotations)
		}
	}
	if got, want := job.Spec.Template.Spec.Containers[0].Args, []string{"uninstall-check", "--driver-name=tls.example.com", "--undo=helm -n step-ca rollback step-csi 1"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	// A release that another one has made the CSIDriver for looks only at its own nodes.
	pool := render(t, "--set", "csiDriver.create=false")
	args := as[batch.Job](t, pool["uninstall/Job"]).Spec.Template.Spec.Containers[0].Args
	selector := at(pool["DaemonSet"], "spec", "selector", "matchLabels").(object)
	labels := fmt.Sprintf("app.kubernetes.io/name=%s,app.kubernetes.io/instance=%s", selector["app.kubernetes.io/name"], selector["app.kubernetes.io/instance"])
	if want := []string{"uninstall-check", "--driver-name=csi.step-ca.io", "--undo=helm -n step-ca rollback step-csi 1", "--plugin-namespace=step-ca", "--plugin-labels=" + labels}; !slices.Equal(args, want) {
		t.Errorf("%v", args)
	}
	// The program accepts the arguments. Outside of a pod, it cannot run.
	if _, err := command(".", stepCSI, args...); err == nil || !strings.Contains(err.Error(), "this command runs in a pod") {
		t.Error(err)
	}
}

// Each check can be switched off.
func TestHooksCanBeOff(t *testing.T) {
	for value, prefix := range map[string]string{"checkConfig": "check/", "uninstallCheck": "uninstall/"} {
		for kind := range render(t, "--set", value+".enabled=false") {
			if strings.HasPrefix(kind, prefix) {
				t.Errorf("%s is off, but there is %s", value, kind)
			}
		}
	}
}
