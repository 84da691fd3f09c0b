// Package cmd tests which packages the programs import.
package cmd

import (
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
