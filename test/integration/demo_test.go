package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The demo runs to its end against this binary.
func TestDemo(t *testing.T) {
	demo := filepath.Join(t.TempDir(), "step-csi-demo")
	if out, err := exec.Command("go", "build", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", demo, "../demo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(demo, "--step-csi", string(binary)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Everything worked as expected") {
		t.Errorf("%v\n%s", err, out)
	}
}
