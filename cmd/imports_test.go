// Package cmd tests which packages the programs import.
package cmd

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/flexstack/step-csi/"

// The programs contain no test code.
func TestNoTestPackages(t *testing.T) {
	for _, path := range imports(t, "./...") {
		if strings.HasPrefix(path, module+"test/") {
			t.Errorf("a program imports %s", path)
		}
	}
}

// Users copy step-csi-reload into their images, so it stays small.
func TestReloadIsSmall(t *testing.T) {
	allowed := map[string]bool{
		module + "cmd/step-csi-reload":          true,
		"github.com/fsnotify/fsnotify":          true,
		"github.com/fsnotify/fsnotify/internal": true,
		"golang.org/x/sys/unix":                 true,
	}
	for _, path := range imports(t, "./step-csi-reload") {
		if !allowed[path] {
			t.Errorf("step-csi-reload imports %s", path)
		}
	}
}

// Administrators run the kubectl plugin on machines that are no nodes.
func TestKubectlPluginBuildsForOtherSystems(t *testing.T) {
	for _, system := range []string{"darwin", "windows"} {
		build := exec.Command("go", "build", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", t.TempDir(), "./kubectl-step_csi")
		build.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, out)
		}
	}
}

// imports lists the linked packages, without the standard library.
func imports(t *testing.T, pattern string) []string {
	t.Helper()
	list := exec.Command("go", "list", "-deps", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", pattern)
	out, err := list.Output()
	if err != nil {
		t.Fatalf("%v: %v", list, err)
	}
	paths := strings.Fields(string(out))
	if len(paths) == 0 {
		t.Fatalf("%v lists nothing", list)
	}
	return paths
}
