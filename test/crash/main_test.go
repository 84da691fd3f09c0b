// Package crash ends the real binary, as it is built for users, at every moment,
// and lets every system call of its mount and file work fail.
package crash

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/sandbox"
)

const driverName = "csi.step-ca.io"

// binary is step-csi, built once for all tests. It has no race detector, with
// which it would take long to start.
var binary string

var (
	soak = flag.Duration("soak", 0, "how long to kill at random, instead of a thousand times in at most two minutes")
	seed = flag.Uint64("seed", 0, "what is random in it, to repeat a run; 0 is something new")
)

func TestMain(m *testing.M) {
	execIntercepted() // does not return where it is asked for
	sandbox.Enter()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	directory, err := os.MkdirTemp("", "step-csi-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(directory)
	binary = filepath.Join(directory, "step-csi")
	build := exec.Command("go", "build", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", binary, "../../cmd/step-csi")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build step-csi: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if left := leftovers(); left != "" {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		return 1
	}
	return code
}

// leftovers looks for mounts of the driver, and for its processes.
func leftovers() string {
	if paths, err := tmpfs.List(driverName); err != nil || len(paths) > 0 {
		return fmt.Sprintf("mounts %q, %v", paths, err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err.Error()
	}
	for _, process := range processes {
		if target, err := os.Readlink(process); err == nil && strings.HasPrefix(target, binary) {
			return "process " + process + " of " + target
		}
	}
	return ""
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func startCA(t testing.TB) *embeddedca.CA {
	t.Helper()
	ca, err := embeddedca.Start(embeddedca.Config{})
	must(t, err)
	t.Cleanup(ca.Stop)
	return ca
}

// eventually waits for a condition that real time brings about.
func eventually(t testing.TB, within time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
