// Package node is a node for tests: the plugin's process, as users run it, and the
// kubelet's calls. The tests' own program has to be in a sandbox, as root.
package node

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// CA is a running step-ca.
type CA interface {
	URL() string
	Fingerprint() string
	Provisioner() (name, password string)
}

// Node is a node with the plugin's process on it. The test starts and stops it.
type Node struct {
	*Kubelet
	Binary  Binary
	Config  string   // the path of step-csi.yaml, which the password is beside
	Flags   []string // more of them
	Env     []string // more variables, as name=value
	Logs    *Log     // of all processes, one after the other
	Process *exec.Cmd
}

// New makes a node whose plugin is configured for the CA, with lifetimes from one
// second on. The plugin is not started. When the test ends, the plugin is stopped,
// and its log is printed if the test has failed.
func New(t testing.TB, binary Binary, ca CA) *Node {
	t.Helper()
	// Not the test's own directory: the path of a socket has at most 107 bytes.
	directory, err := os.MkdirTemp(filepath.Dir(string(binary)), "node-")
	Must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(directory); err != nil {
			t.Error(err)
		}
	})
	kubeletDir := filepath.Join(directory, "kubelet")
	Must(t, os.Mkdir(kubeletDir, 0o755))
	n := &Node{Kubelet: NewKubelet(t, kubeletDir), Binary: binary, Config: filepath.Join(directory, "step-csi.yaml"), Logs: &Log{}}
	name, password := ca.Provisioner()
	Must(t, os.WriteFile(filepath.Join(directory, "password"), []byte(password+"\n"), 0o600))
	Must(t, os.WriteFile(n.Config, fmt.Appendf(nil, `
issuers:
  default:
    url: %s
    fingerprint: %s
    provisioner: {type: jwk, name: %s, passwordFile: password}
    duration: {default: 1h, max: 24h, min: 1s}
`, ca.URL(), ca.Fingerprint(), name), 0o600))
	t.Cleanup(func() {
		n.Stop()
		if t.Failed() {
			t.Logf("the plugin's log ends with:\n%s", n.Logs.Tail(1000))
		}
	})
	return n
}

// ChangeConfig replaces a text in the plugin's configuration, which the next
// process reads.
func (n *Node) ChangeConfig(old, new string) {
	n.T.Helper()
	config, err := os.ReadFile(n.Config)
	Must(n.T, err)
	if !strings.Contains(string(config), old) {
		n.T.Fatalf("the configuration has no %q", old)
	}
	Must(n.T, os.WriteFile(n.Config, []byte(strings.ReplaceAll(string(config), old, new)), 0o600))
}

// RefreshRoots has the plugin ask for roots so often, which is minutes by default.
func (n *Node) RefreshRoots(interval time.Duration) {
	n.T.Helper()
	n.ChangeConfig("    duration:", fmt.Sprintf("    roots: {refresh: %s}\n    duration:", interval))
}

// Command is the plugin's process, which is not started.
func (n *Node) Command() *exec.Cmd {
	args := []string{"node", "--config", n.Config, "--kubelet-dir", n.KubeletDir, "--node-name", "node-1", "--v", "4"}
	command := n.Binary.Command(append(args, n.Flags...)...)
	// Whatever it writes beside its volumes, it writes here, and a test looks there.
	command.Dir = filepath.Dir(n.Config)
	// The tests may run in a pod, which the plugin must not take for its own.
	command.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KUBERNETES_SERVICE_HOST=") })
	command.Env = append(command.Env, append(n.Env, "TMPDIR="+command.Dir)...)
	command.Stdout, command.Stderr = n.Logs, n.Logs
	return command
}

// Launch starts the plugin, and does not wait.
func (n *Node) Launch() {
	n.T.Helper()
	n.Process = n.Command()
	Must(n.T, n.Process.Start())
}

// Start starts the plugin, and waits until it is ready: it has a CA.
func (n *Node) Start() {
	n.T.Helper()
	n.Launch()
	n.WaitReady()
}

// WaitReady waits until the plugin is ready, and registers it.
func (n *Node) WaitReady() {
	n.T.Helper()
	defer n.register()
	n.wait("the plugin is ready", func(answer *csi.ProbeResponse) bool { return answer.GetReady().GetValue() })
}

// WaitServing waits until the plugin answers, with a CA or without, and registers it.
func (n *Node) WaitServing() {
	n.T.Helper()
	defer n.register()
	n.wait("the plugin answers", func(*csi.ProbeResponse) bool { return true })
}

// register registers the plugin, unless it serves no socket for that.
func (n *Node) register() {
	n.T.Helper()
	if _, err := os.Lstat(n.RegistrationSocket()); err == nil && !n.T.Failed() {
		Must(n.T, n.Register(&registration.RegistrationStatus{PluginRegistered: true}))
	}
}

func (n *Node) wait(what string, enough func(*csi.ProbeResponse) bool) {
	n.T.Helper()
	Eventually(n.T, time.Minute, what, func() bool {
		ctx, cancel := n.context()
		defer cancel()
		answer, err := n.Probe(ctx, &csi.ProbeRequest{})
		return err == nil && enough(answer)
	})
}

// Signal sends the plugin a signal.
func (n *Node) Signal(signal syscall.Signal) {
	n.T.Helper()
	Must(n.T, n.Process.Process.Signal(signal))
}

// Wait waits until the plugin has ended, and returns how. A plugin that does not
// end within a minute is killed.
func (n *Node) Wait() error {
	process := n.Process
	late := time.AfterFunc(time.Minute, func() {
		n.T.Error("the plugin does not end")
		_ = process.Process.Kill()
	})
	defer late.Stop()
	err := process.Wait()
	n.Process = nil
	n.disconnected()
	return err
}

// Kill kills the plugin, if it runs.
func (n *Node) Kill() {
	if n.Process != nil {
		_ = n.Process.Process.Kill()
		_ = n.Wait()
	}
}

// Stop ends the plugin as the end of its pod does, if it runs. It has to exit with
// status 0.
func (n *Node) Stop() {
	if n.Process == nil {
		return
	}
	_ = n.Process.Process.Signal(syscall.SIGTERM)
	if err := n.Wait(); err != nil {
		n.T.Errorf("the plugin: %v", err)
	}
}

// ExpectNothingLeft checks that a stopped plugin, without volumes, has left no file but
// the roots that it has learned.
func (n *Node) ExpectNothingLeft() {
	n.T.Helper()
	Must(n.T, filepath.WalkDir(n.KubeletDir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && entry.Name() != "trusted-roots.json" {
			n.T.Errorf("left behind: %s", path)
		}
		return err
	}))
}

// ExpectGone checks that nothing is left of the pod's volume.
func (n *Node) ExpectGone(p Pod) {
	n.T.Helper()
	if _, err := os.Lstat(n.Target(p)); !os.IsNotExist(err) {
		n.T.Errorf("%s: the target is still there: %v", p.Name, err)
	}
	for _, path := range n.Mounts() {
		if path == n.Target(p) {
			n.T.Errorf("%s is still mounted", p.Name)
		}
	}
}
