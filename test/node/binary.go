package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// Binary is the path of step-csi. Nodes are made in the directory that it is in.
type Binary string

// Build builds step-csi into the directory. With the race detector, which needs a C
// compiler and makes processes start slowly, it finds data races, too.
func Build(directory string, race bool) (Binary, error) {
	binary := filepath.Join(directory, "step-csi")
	args := []string{"build", "-tags", "nobadger,nobbolt,nomysql,nopgx", "-o", binary}
	cgo := "CGO_ENABLED=0"
	if race {
		cgo, args = "CGO_ENABLED=1", append(args, "-race")
	}
	build := exec.Command("go", append(args, "github.com/flexstack/step-csi/cmd/step-csi")...)
	build.Env = append(os.Environ(), cgo)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build step-csi: %w\n%s", err, out)
	}
	return Binary(binary), nil
}

// HasRaceDetector tells whether this machine can build with the race detector.
func HasRaceDetector() bool {
	cgo, err := exec.Command("go", "env", "CGO_ENABLED").Output()
	return err == nil && strings.TrimSpace(string(cgo)) == "1"
}

// Command is step-csi with these arguments.
func (b Binary) Command(args ...string) *exec.Cmd { return exec.Command(string(b), args...) }

// Run runs the package's tests with step-csi, which it builds and sets. It returns
// the exit status: tests also fail if they leave something behind.
func Run(m *testing.M, binary *Binary, race bool) int {
	directory, err := os.MkdirTemp("", "step-csi-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(directory)
	if *binary, err = Build(directory, race); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := binary.leftovers(); err != nil {
		fmt.Fprintln(os.Stderr, "left behind:", err)
		return 1
	}
	return code
}

// leftovers looks for what tests should have removed: mounts of the driver, its
// sockets and processes, and the directories of nodes.
func (b Binary) leftovers() error {
	if paths, err := tmpfs.List(context.Background(), Driver); err != nil || len(paths) > 0 {
		return fmt.Errorf("mounts %q, %v", paths, err)
	}
	directory := filepath.Dir(string(b))
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(sockets)) {
		// Other packages' tests run at the same time and have their own directories.
		if strings.Contains(line, " "+directory+"/") {
			return fmt.Errorf("socket %s", line)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err
	}
	for _, process := range processes {
		if target, err := os.Readlink(process); err == nil && strings.HasPrefix(target, string(b)) {
			return fmt.Errorf("process %s of %s", process, target)
		}
	}
	if nodes, err := filepath.Glob(filepath.Join(directory, "node-*")); err != nil || len(nodes) > 0 {
		return fmt.Errorf("directories %q, %v", nodes, err)
	}
	return nil
}
