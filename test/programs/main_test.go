// Package programs starts real servers with the files of a volume, and connects to them
// with the files of another pod's volume, before and after a renewal. The attributes and
// the configuration are those of docs/programs.md.
//
// To add a server: write its section of the page, and a test that runs a server value. See
// redis_test.go.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/flexstack/step-csi/test/node"
	"github.com/flexstack/step-csi/test/sandbox"
)

// binary is the step-csi binary, built once for all tests.
var binary node.Binary

// buildReload builds step-csi-reload beside it, once for all tests that need it.
var buildReload = sync.OnceValue(func() error {
	build := exec.Command("go", "build", "-o", filepath.Join(filepath.Dir(string(binary)), "step-csi-reload"), "../../cmd/step-csi-reload")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build step-csi-reload: %w\n%s", err, out)
	}
	return nil
})

func TestMain(m *testing.M) {
	sandbox.Enter()
	// The tests add hosts and users, inside the sandbox.
	for _, file := range []string{"/etc/hosts", "/etc/passwd"} {
		if err := replaceByCopy(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(node.Run(m, &binary, false))
}

// replaceByCopy mounts a copy of the file over it.
func replaceByCopy(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	directory, err := os.MkdirTemp("", "step-csi-programs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory) // the bind mount keeps the file
	replacement := filepath.Join(directory, filepath.Base(file))
	if err := os.WriteFile(replacement, text, 0o644); err != nil {
		return err
	}
	return syscall.Mount(replacement, file, "", syscall.MS_BIND, "")
}

// appendLine appends a line to one of these files. Programs that read the file at the same
// time see the whole line or nothing of it.
func appendLine(t testing.TB, file, line string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	node.Must(t, err)
	_, err = f.WriteString(line + "\n")
	node.Must(t, err)
	node.Must(t, f.Close())
}
