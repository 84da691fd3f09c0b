package main

import (
	"bytes"
	"context"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

var update = flag.Bool("update", false, "write the files that TestConvert expects")

// Each file of testdata becomes its golden file, with the remarks beside it.
func TestConvert(t *testing.T) {
	for _, c := range []struct {
		input string
		flags []string
	}{
		{"csi-driver.yaml", nil},
		{"certificate.yaml", nil},
		{"autocert.yaml", []string{"-n", "default"}},
		{"list.json", []string{"--issuer", "vault=internal"}},
		{"aliases.yaml", nil},
		{"pairs.yaml", nil},
	} {
		t.Run(c.input, func(t *testing.T) {
			out, remarks, status := convertFile(t, filepath.Join("testdata", c.input), c.flags...)
			if status != 0 {
				t.Fatalf("status %d: %s", status, remarks)
			}
			golden(t, c.input+".golden", out)
			golden(t, c.input+".remarks", remarks)
			for line := range strings.Lines(remarks) {
				if !strings.HasPrefix(line, "# ") {
					t.Errorf("a line does not begin with #: %s", line)
				}
			}
			// A Certificate that stays keeps its password.
			if kept := "{create: true, password: hunter2}"; strings.Contains(strings.ReplaceAll(out, kept, "")+remarks, "hunter2") {
				t.Error("the password of a key store is in the output")
			}
			volumes := checkManifests(t, out)
			if volumes == 0 {
				t.Error("no volume was converted")
			}
			// What is converted stays as it is.
			again, _, _ := convertText(out, c.flags...)
			if again != out {
				t.Errorf("a second conversion changes the result:\n%s", again)
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s\nIf the change is meant, run go test -run TestConvert -update", name, got, want)
	}
}

func convertFile(t *testing.T, path string, flags ...string) (out, remarks string, status int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return convertText(string(data), flags...)
}

func convertText(input string, flags ...string) (out, remarks string, status int) {
	var stdout, stderr bytes.Buffer
	status = run(context.Background(), append([]string{"convert", "-f", "-"}, flags...), strings.NewReader(input), &stdout, &stderr)
	return stdout.String(), stderr.String(), status
}

// checkManifests decodes the manifests as the API server does, and parses the attributes of
// their volumes as the node plugin does. It returns the number of step-csi's volumes.
func checkManifests(t *testing.T, out string) (volumes int) {
	t.Helper()
	documents, err := documents("output", []byte(out))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range documents {
		for _, o := range d.objects() {
			data, err := yamlText(o)
			if err != nil {
				t.Fatal(err)
			}
			var spec corev1.PodSpec
			switch o.kind() {
			case "Pod":
				var pod corev1.Pod
				err = yaml.UnmarshalStrict(data, &pod)
				spec = pod.Spec
			case "Deployment":
				var workload appsv1.Deployment
				err = yaml.UnmarshalStrict(data, &workload)
				spec = workload.Spec.Template.Spec
			case "StatefulSet":
				var workload appsv1.StatefulSet
				err = yaml.UnmarshalStrict(data, &workload)
				spec = workload.Spec.Template.Spec
			case "DaemonSet":
				var workload appsv1.DaemonSet
				err = yaml.UnmarshalStrict(data, &workload)
				spec = workload.Spec.Template.Spec
			case "Job":
				var workload batchv1.Job
				err = yaml.UnmarshalStrict(data, &workload)
				spec = workload.Spec.Template.Spec
			case "CronJob":
				var workload batchv1.CronJob
				err = yaml.UnmarshalStrict(data, &workload)
				spec = workload.Spec.JobTemplate.Spec.Template.Spec
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", o, err, data)
			}
			for _, volume := range spec.Volumes {
				if volume.CSI == nil || volume.CSI.Driver != "csi.step-ca.io" {
					continue
				}
				volumes++
				if volume.CSI.ReadOnly == nil || !*volume.CSI.ReadOnly {
					t.Errorf("%s: the volume %s is not read-only", o, volume.Name)
				}
				if err := parse(volume.CSI.VolumeAttributes); err != nil {
					t.Errorf("%s: the volume %s: %v", o, volume.Name, err)
				}
			}
		}
	}
	return volumes
}

func yamlText(o object) ([]byte, error) {
	var value any
	if err := o.node.Decode(&value); err != nil {
		return nil, err
	}
	return yaml.Marshal(value)
}

func parse(values map[string]string) error {
	domain, err := names.ParseClusterDomain("cluster.local")
	if err != nil {
		return err
	}
	issuers := map[string]issuer.Lifetimes{"default": {}, "internal": {}}
	_, err = attributes.Parse(values, issuer.Pod{
		Namespace: "shop", Name: "web-0", UID: "0a7e7bb1-e4d3-4b0c-8b0e-a0c1c2d3e4f5", ServiceAccount: "web", Node: "node-1",
	}, "", attributes.Config{ClusterDomain: domain, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Issuers: issuers})
	return err
}

// The table of the page, that of the program and step-csi's attributes are the same.
func TestAttributesOfThePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/migrate-cert-manager.md")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `csi\\.cert-manager\\.io/([a-z0-9-]+)` \\| (?:none|`([a-z0-9-]+)`) \\|").FindAllStringSubmatch(string(page), -1) {
		got[row[1]] = row[2]
	}
	if want := certManagerAttributes(); !maps.Equal(got, want) {
		t.Errorf("the page has %v, and the program %v", got, want)
	}
	for _, ours := range certManagerAttributes() {
		if ours != "" && !slices.Contains(attributes.Keys(), ours) {
			t.Errorf("%s is no attribute of step-csi", ours)
		}
	}
}

// Whatever is not converted is printed byte for byte.
func TestConvertKeepsOtherDocuments(t *testing.T) {
	for _, input := range []string{
		"", "\n", "---\n", "# only a comment", "a:   1\r\n---\r\nb: [1,\n  2]\r\n", "--- {a: 1}\n--- |\n  text\n...\n---\n---\n# end\n",
		"\ufeffkind: Pod\n", "kind: Pod\nspec:\n  volumes: 7\n", "- 1\n- 2\n", "kind: PodList\nitems: null\n", "a: &x 1\nb: *x\n",
	} {
		if out, remarks, status := convertText(input); out != input || remarks != "" || status != 0 {
			t.Errorf("%q became %q, with the status %d and the remarks %q", input, out, status, remarks)
		}
	}
}

// Line ends and the ends of documents stay.
func TestConvertKeepsTheFrame(t *testing.T) {
	pod := "kind: Pod\nmetadata: {name: a}\nspec:\n  volumes:\n  - name: tls\n    csi: {driver: csi.cert-manager.io, readOnly: true, volumeAttributes: " +
		"{csi.cert-manager.io/issuer-name: s, csi.cert-manager.io/issuer-group: certmanager.step.sm, csi.cert-manager.io/duration: 1h}}\n"
	want := "kind: Pod\nmetadata: {name: a}\nspec:\n  volumes:\n  - name: tls\n    csi: {driver: csi.step-ca.io, readOnly: true, volumeAttributes: {duration: \"1h\"}}\n"
	for _, frame := range []struct{ before, after string }{
		{"", ""}, {"--- # a comment\n", ""}, {"---\n", "...\n"}, {"---\n", "---\na:    1"},
	} {
		for _, end := range []string{"\n", "\r\n"} {
			lines := func(text string) string { return strings.ReplaceAll(frame.before+text+frame.after, "\n", end) }
			if out, remarks, _ := convertText(lines(pod)); out != lines(want) {
				t.Errorf("%q became %q (%s)", lines(pod), out, remarks)
			}
		}
	}
	inline := strings.Replace("--- {kind: Pod, spec: {volumes: [{name: tls, csi: {driver: csi.cert-manager.io, readOnly: true, volumeAttributes: {X/issuer-name: s, X/issuer-group: certmanager.step.sm}}}]}}\n", "X", "csi.cert-manager.io", 2)
	if out, remarks, _ := convertText(inline); out != "---\n{kind: Pod, spec: {volumes: [{name: tls, csi: {driver: csi.step-ca.io, readOnly: true}}]}}\n" {
		t.Errorf("got %q (%s)", out, remarks)
	}
}

// Lines that are not changed keep their blanks, whatever the indentation is.
func TestConvertKeepsLines(t *testing.T) {
	for _, indent := range []string{"  ", "    "} {
		lines := func(text string) string { return strings.ReplaceAll(text, ">", indent) }
		input := lines("\n# first\n\nkind:   Pod   # a pod\nmetadata:\n>name: a\n\n>annotations:\n>>autocert.step.sm/name: a.b.svc\n>>kept: \"x\"\n\n\n" +
			"spec:\n>containers:\n>-   name: a\n>>image:  a\n\n")
		want := lines("\n# first\n\nkind:   Pod   # a pod\nmetadata:\n>name: a\n\n>annotations:\n>>kept: \"x\"\n\n\nspec:\n>containers:\n")
		if indent == "  " { // otherwise the encoder moves the list
			input = strings.ReplaceAll(input, "-   name", "- name")
			want += "  - name: a\n    image:  a\n"
		}
		if out, remarks, _ := convertText(input); !strings.HasPrefix(out, want) || !strings.Contains(out, stepDriver) {
			t.Errorf("got\n%s\nwant\n%s\n%s", out, want, remarks)
		}
	}
}

// With several StepIssuers, the program does not guess which of step-csi's issuers is meant.
func TestConvertSeveralIssuers(t *testing.T) {
	pod := func(issuer string) string {
		return "---\nkind: Pod\nmetadata: {name: " + issuer + "}\nspec: {volumes: [{name: tls, csi: {driver: csi.cert-manager.io, volumeAttributes: {csi.cert-manager.io/issuer-name: " +
			issuer + ", csi.cert-manager.io/issuer-group: certmanager.step.sm}}}]}\n"
	}
	input := pod("red") + pod("blue")
	out, remarks, status := convertText(input, "--strict")
	if out != input || status != 1 || !strings.Contains(remarks, "--issuer red=default") {
		t.Errorf("status %d, %s\n%s", status, remarks, out)
	}
	out, _, status = convertText(input, "--strict", "--issuer", "red=default", "--issuer=blue=second")
	if status != 0 || strings.Count(out, "csi.step-ca.io") != 2 || strings.Count(out, "issuer: second") != 1 || strings.Count(out, "issuer:") != 1 {
		t.Errorf("status %d, %s", status, out)
	}
}

// A pod without a namespace may be in that of the Certificate: its Secret stays.
func TestConvertUnknownNamespace(t *testing.T) {
	certificate := "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a, namespace: shop}\n" +
		"spec: {secretName: a-tls, dnsNames: [a.shop.svc], privateKey: {algorithm: ECDSA}, issuerRef: {name: s, group: certmanager.step.sm}}\n---\n"
	volume := "spec: {volumes: [{name: tls, secret: {secretName: a-tls}}]}\n"
	env := "spec: {containers: [{name: a, envFrom: [{secretRef: {name: a-tls}}]}]}\n"
	input := certificate + "kind: Pod\nmetadata: {name: a, namespace: shop}\n" + volume + "---\nkind: Pod\nmetadata: {name: b}\n" + env
	for flag, kept := range map[string]bool{"-n=": true, "-n=shop": true, "-n=other": false} {
		out, remarks, _ := convertText(input, flag)
		if strings.Contains(out, "kind: Certificate") != kept || strings.Contains(remarks, "still used by Pod b") != kept {
			t.Errorf("%s: %s%s", flag, out, remarks)
		}
	}
}

// Files are read in the order of the command line, directories without those below them unless
// -R is given, and a Certificate may be in another file than its pods.
func TestConvertFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"1.yaml": "kind: Pod\nmetadata: {name: a}\nspec: {volumes: [{name: tls, secret: {secretName: a-tls}}]}",
		"2.yml":  "# kept\n",
		"3.txt":  "{{ no YAML",
		"below/certificate.yaml": "apiVersion: cert-manager.io/v1\nkind: Certificate\nmetadata: {name: a}\n" +
			"spec: {secretName: a-tls, dnsNames: [a.b.svc], privateKey: {algorithm: ECDSA}, issuerRef: {name: s, group: certmanager.step.sm}}\n",
		"below/z.json": `{"z": 1}`,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-f", dir}, "kind: Pod\nmetadata: {name: a}\nspec: {volumes: [{name: tls, secret: {secretName: a-tls}}]}\n---\n# kept\n"},
		{[]string{"-R", "-f", dir}, "kind: Pod\nmetadata: {name: a}\nspec: {volumes: [{name: tls, csi: {driver: csi.step-ca.io, readOnly: true, volumeAttributes: {dns-names: a.b.svc}}}]}\n---\n# kept\n---\n{\"z\": 1}"},
		{[]string{"-f", filepath.Join(dir, "2.yml"), "-f", "-"}, "# kept\n---\nstdin: 1\n"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), append([]string{"convert"}, c.args...), strings.NewReader("stdin: 1\n"), &stdout, &stderr)
		if status != 0 || stdout.String() != c.want {
			t.Errorf("%v: status %d, %s\ngot\n%s\nwant\n%s", c.args, status, stderr.String(), stdout.String(), c.want)
		}
	}
}

// A template or a damaged file is an error, which names the file and the document, and nothing
// is printed.
func TestConvertErrors(t *testing.T) {
	out, stderr, status := convertText("a: 1\n---\nb: {{ .Values.b }}: {\n")
	if status != 1 || out != "" || !strings.Contains(stderr, "standard input, document at line 2:") || !strings.Contains(stderr, "render it first") {
		t.Errorf("status %d, %q, %s", status, out, stderr)
	}
	var stdout, errors bytes.Buffer
	if status := run(t.Context(), []string{"convert", "-f", "/does/not/exist"}, nil, &stdout, &errors); status != 1 || !strings.Contains(errors.String(), "/does/not/exist") {
		t.Errorf("status %d, %s", status, errors.String())
	}
}

// No input makes the program panic, and what it prints is what the API server and the node
// plugin accept, as far as the input was.
func FuzzConvert(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range append(files, "testdata/list.json") {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for part := range strings.SplitSeq(string(data), "\n---\n") {
			f.Add(part)
		}
		f.Add(string(data))
	}
	f.Fuzz(func(t *testing.T, input string) {
		out, remarks, status := convertText(input)
		if status != 0 {
			if out != "" {
				t.Fatalf("status %d, and the output %q", status, out)
			}
			return
		}
		if remarks == "" && out != input && !strings.Contains(out, stepDriver) {
			t.Fatalf("%q became %q without a remark", input, out)
		}
		before, err := documents("input", []byte(input))
		if err != nil {
			t.Fatal(err)
		}
		after, err := documents("output", []byte(out))
		if err != nil {
			t.Fatalf("the output is not YAML: %v\n%s", err, out)
		}
		if len(after) > len(before) {
			t.Fatalf("%d documents became %d:\n%s", len(before), len(after), out)
		}
		for _, d := range after {
			for _, o := range d.objects() {
				p, ok := o.pod()
				if !ok || hasAlias(d.root) || strings.Contains(input, stepDriver) {
					continue
				}
				for _, volume := range p.volumes() {
					if text(volume, "csi", "driver") != stepDriver {
						continue
					}
					c := converter{namespace: "default"}
					c.clusterDomain, _ = names.ParseClusterDomain("cluster.local")
					values := map[string]string{}
					if list := get(volume, "csi", "volumeAttributes"); list != nil {
						if err := list.Decode(&values); err != nil {
							t.Fatal(err)
						}
					}
					if err := c.check(values, p); err != nil {
						t.Fatalf("%v\n%s", err, out)
					}
				}
			}
		}
	})
}
