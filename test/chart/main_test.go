package chart

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const (
	root  = "../.."
	chart = root + "/deploy/charts/step-csi"
)

var update = flag.Bool("update", false, "write what is generated from the chart")

// Paths of the programs.
var helm, helmDocs, kustomize, stepCSI string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	directory, err := os.MkdirTemp("", "chart")
	if err == nil {
		defer os.RemoveAll(directory)
		err = build(directory)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build finds the tools in the module that pins them. go tool caches the built tools
// for the next run.
func build(directory string) error {
	for name, path := range map[string]*string{"helm": &helm, "helm-docs": &helmDocs, "kustomize": &kustomize} {
		out, err := command(root+"/test/cluster/helm", "go", "tool", "-n", name)
		if err != nil {
			return err
		}
		*path = strings.TrimSpace(out)
	}
	stepCSI = filepath.Join(directory, "step-csi")
	_, err := command(root, "go", "build", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", stepCSI, "./cmd/step-csi")
	return err
}

// command returns the program's standard output. The error contains all output.
func command(directory, name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Dir = directory
	// Built like the cluster's programs and the image, so that each is compiled once.
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="+os.Getenv("GOFLAGS")+" -trimpath")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// template renders the chart in the namespace step-ca, of a cluster that has all
// that the chart can use.
func template(args ...string) (string, error) {
	return templateOf("step-csi", "step-ca", args...)
}

// templateOf renders the chart as another release.
func templateOf(release, namespace string, args ...string) (string, error) {
	return command(".", helm, append([]string{"template", release, chart, "--namespace", namespace, "--kube-version", "1.37.0"}, args...)...)
}

// object is a Kubernetes object, or anything else of YAML.
type object = map[string]any

// render renders the chart into its objects, by kind. The authority's objects have the
// prefix ra/, the pod of helm test is "hook", and other hooks have the prefix check/ or
// uninstall/.
func render(t *testing.T, args ...string) map[string]object {
	t.Helper()
	text, err := template(args...)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

func objects(t *testing.T, text string) map[string]object {
	t.Helper()
	all := map[string]object{}
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		o := object{}
		if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		if len(o) == 0 {
			continue
		}
		kind := o["kind"].(string)
		switch hook, _ := at(o, "metadata", "annotations", "helm.sh/hook").(string); hook {
		case "":
		case "test":
			kind = "hook"
		case "pre-install,pre-upgrade":
			kind = "check/" + kind
		case "pre-delete":
			kind = "uninstall/" + kind
		default:
			t.Fatalf("unknown hook %s", hook)
		}
		if name, _ := at(o, "metadata", "labels", "app.kubernetes.io/name").(string); strings.HasSuffix(name, "-ra") {
			kind = "ra/" + kind
		}
		if all[kind] != nil {
			t.Fatalf("more than one %s", kind)
		}
		all[kind] = o
	}
	return all
}

// isHook tells whether objects of this kind are hooks, which only Helm makes.
func isHook(kind string) bool {
	return kind == "hook" || strings.HasPrefix(kind, "check/") || strings.HasPrefix(kind, "uninstall/")
}

// at returns the value at the path of keys, or nil.
func at(o any, path ...string) any {
	for _, key := range path {
		m, _ := o.(object)
		o = m[key]
	}
	return o
}

// valueFiles returns the examples, and the file that changes every value.
func valueFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(root + "/deploy/examples/values/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal("too few examples: ", len(files), err)
	}
	return append(files, allValues)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
