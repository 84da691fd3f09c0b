//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	identity   = "flexstack-identity" // the guide's namespace, for step-ca
	plugin     = "step-csi"           // the namespace of step-csi
	pluginTag  = "ghcr.io/flexstack/step-csi:dev"
	reloadTag  = "ghcr.io/flexstack/step-csi-reload:dev"
	guideFile  = "deploy/examples/values/guide.yaml"
	chart      = "deploy/charts/step-csi"
	driverName = "csi.step-ca.io"
)

type scenario struct {
	name string
	run  func(*testing.T)
}

// TestE2E runs the scenarios: first the independent ones in parallel, then the others
// one by one.
func TestE2E(t *testing.T) {
	t.Run("together", func(t *testing.T) {
		slots := make(chan struct{}, 4) // two cores cannot run more scenarios at once
		next := make(chan struct{})
		close(next)
		for _, s := range []scenario{ // the slowest first
			{"try", try},
			{"mistakes", mistakes},
			{"mtls", exampleMTLS},
			{"shapes", shapes},
			{"validation", validation},
			{"keystores", keyStores},
			{"nginx", exampleNginx},
			{"nats", exampleNATS},
			{"spiffe", spiffe},
			{"rotation", rotation},
			{"guide", guide},
			{"quick-start", quickStart},
			{"storage-suite", storageSuite},
			{"non-root", nonRoot},
			{"deletion", deletion},
			{"refusals", refusals},
			{"postgresql", examplePostgreSQL},
			{"api", exampleAPI},
			{"two-clusters", twoClusters},
			{"helm-test", helmTest},
			{"network-policy", networkPolicy},
			{"attack-tokens", attackTokens},
			{"attack-pods", attackPods},
			{"compromised", compromisedNode},
			{"finished", finishedPod},
			{"metrics", metrics},
			{"long-names", longNames},
		} {
			t.Run(s.name, func(t *testing.T) {
				mayBegin, begun := next, make(chan struct{})
				next = begun
				t.Parallel()
				<-mayBegin // the order of parallel tests is random
				slots <- struct{}{}
				close(begun)
				defer func() { <-slots }()
				watched(t, s.run)
			})
		}
	})
	for _, s := range []scenario{
		{"plugin-killed", pluginKilled},
		{"plugin-down", pluginDown},
		{"hundred-pods", hundredPods}, // long before uninstall, which waits until its pods have ended
		{"operations", operate},
		{"add-ca", addCA},
		{"upgrade", upgrade},
		{"node-mode", nodeMode},
		{"ca-outage", caOutage},
		{"password", passwords},
		{"provisioner", recommendedProvisioner},
		{"root-rotation", rootRotation},
		{"disaster", disaster},
		{"kubelet-restart", kubeletRestart},
		{"directory-removed", directoryRemoved},
		{"node-restart", nodeRestart},
		{"uninstall", uninstall},
		{"step-certificates", stepCertificates},
	} {
		t.Run("alone/"+s.name, func(t *testing.T) { watched(t, s.run) })
	}
}

// watched prints how long a scenario took, and saves the logs if it failed.
func watched(t *testing.T, run func(*testing.T)) {
	fmt.Printf("--> %s\n", t.Name())
	begin := time.Now()
	t.Cleanup(func() { fmt.Printf("<-- %s: %.1f s\n", t.Name(), time.Since(begin).Seconds()) })
	defer func() { // before the scenario's own cleanup
		if t.Failed() {
			keepLogs(t)
		}
	}()
	run(t)
}

// cluster is the cluster of all scenarios. TestMain sets it once.
var cluster struct {
	name, tool string
	kubernetes string // its version, such as 1.34; empty for the newest
	env        []string
}

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done() // the cluster ends with this process
		stop()
		os.Exit(1)
	}()
	status, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		status = 1
	}
	os.Exit(status)
}

// runAll sets up the cluster, step-ca and the plugin as the README describes, and runs
// the scenarios.
func runAll(m *testing.M) (status int, err error) {
	if err := os.Chdir("../.."); err != nil {
		return 1, err
	}
	cluster.name = fmt.Sprintf("e2e-%d", os.Getpid())
	cluster.kubernetes = os.Getenv("KUBERNETES")
	if cluster.tool, err = filepath.Abs("bin/step-csi-cluster"); err != nil {
		return 1, err
	}
	logs, err := logsDirectory()
	if err != nil {
		return 1, err
	}
	if err := os.RemoveAll(logs); err != nil {
		return 1, err
	}
	begin := time.Now()
	say := func(what string) { fmt.Printf("%4.0f s  %s\n", time.Since(begin).Seconds(), what) }

	say("images")
	archives, err := os.MkdirTemp("", "step-csi-images-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(archives)
	program, reload := filepath.Join(archives, "step-csi.tar"), filepath.Join(archives, "step-csi-reload.tar")
	if err := buildImages(".", "BASE=local", "VERSION=", "IMAGE="+pluginTag, "IMAGE_ARCHIVE="+program, "RELOAD_IMAGE="+reloadTag, "RELOAD_IMAGE_ARCHIVE="+reload); err != nil {
		return 1, err
	}
	images, err := command("go", "run", "./test/e2e/images")
	if err != nil {
		return 1, err
	}
	say("cluster")
	if err := startCluster(); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, stopCluster()) }()
	say("load images")
	if _, err := tool("load", strings.TrimSpace(images), program, reload); err != nil {
		return 1, err
	}
	say("step-ca")
	if err := installCA(); err != nil {
		return 1, err
	}
	say("helm install")
	if err := installPlugin(); err != nil {
		return 1, err
	}
	say("scenarios")
	status = m.Run()
	say("done")
	return status, nil
}

// buildImages builds both images of the sources in the directory, with the variables of
// deploy/image/build.sh.
func buildImages(sources string, variables ...string) error {
	build := exec.Command("deploy/image/build.sh")
	build.Dir = sources
	build.Env = append(os.Environ(), variables...)
	out, err := build.CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the images: %w\n%s", err, out)
	}
	return nil
}

// startCluster starts the cluster, or restarts it with its state.
func startCluster(flags ...string) error {
	up := exec.Command(cluster.tool, toolArgs(append(flags, "--owner", fmt.Sprint(os.Getpid()), "up")...)...)
	up.Stderr = os.Stderr
	variables, err := up.Output()
	if err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	cluster.env = os.Environ()
	for line := range strings.Lines(string(variables)) {
		variable := strings.TrimSpace(strings.TrimPrefix(line, "export "))
		cluster.env = append(cluster.env, strings.ReplaceAll(variable, "$PATH", os.Getenv("PATH")))
	}
	// exec.Command looks up programs in this process's PATH.
	for _, variable := range cluster.env {
		if path, ok := strings.CutPrefix(variable, "PATH="); ok {
			os.Setenv("PATH", path)
		}
	}
	return nil
}

func stopCluster() error {
	_, err := tool("down")
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/step-csi-" + cluster.name); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("control groups are left: %s", left))
	}
	return err
}

func tool(args ...string) (string, error) {
	return command(cluster.tool, toolArgs(args...)...)
}

func toolArgs(args ...string) []string {
	flags := []string{"--name", cluster.name}
	if cluster.kubernetes != "" {
		flags = append(flags, "--kubernetes", cluster.kubernetes)
	}
	return append(flags, args...)
}

// installCA runs the commands of the README's quick start, with a CA that is kept when its
// pod is deleted. Then it allows lifetimes of 5 seconds and more, and adds a provisioner for
// a second issuer, and additional roots, as installPlugin does.
func installCA() error {
	for _, mark := range []string{"**1. A step-ca", "**2. A namespace"} {
		_, err := shellBlock("README.md", mark, func(script string) string {
			return strings.ReplaceAll(script, "deploy/step-ca/trial", "deploy/step-ca")
		})
		if err != nil {
			return err
		}
	}
	_, err := command("kubectl", "-n", identity, "exec", "deployment/step-ca", "--", "sh", "-euc",
		`cd /home/step
		step ca provisioner update admin --x509-min-dur=5s --ca-config=config/ca.json
		echo other-password > /tmp/other
		step ca provisioner add other --create --password-file=/tmp/other --x509-default-dur=1h --disable-renewal --ca-config=config/ca.json
		kill -HUP 1`)
	if err != nil {
		return err
	}
	_, err = command("kubectl", "-n", plugin, "create", "secret", "generic", "other-provisioner", "--from-literal=password=other-password")
	if err != nil {
		return err
	}
	_, err = setAdditionalRoots()
	return err
}

// shellBlock runs the first shell block after a mark in a document, and so tests the
// document.
func shellBlock(document, mark string, change func(string) string) (string, error) {
	script, err := block(document, mark, "sh")
	if err != nil {
		return "", err
	}
	return command("sh", "-euc", change(script))
}

func installPlugin(values ...string) error {
	return install(".", append([]string{
		"--set", "image.tag=dev,hooks.timeoutSeconds=240,ra.terminationGracePeriodSeconds=4,renewal.minInterval=3s,issuers.default.duration.min=5s",
		"--set", "issuers.other.url=https://step-ca.flexstack-identity.svc.cluster.local:9000,issuers.other.caBundle.configMap=step-csi-ca-root,issuers.other.caBundle.key=root_ca.crt",
		"--set", "issuers.other.provisioner.type=jwk,issuers.other.provisioner.name=other,issuers.other.provisioner.passwordSecret.name=other-provisioner,issuers.other.provisioner.passwordSecret.key=password",
		"--set", "issuers.other.additionalRoots.configMap=additional-roots,issuers.other.roots.refresh=2s",
	}, values...)...)
}

// install installs or upgrades the plugin with the chart of the sources in the directory,
// and the values of this version.
func install(sources string, values ...string) error {
	_, err := command("helm", append([]string{"upgrade", "--install", "step-csi", filepath.Join(sources, chart), "-n", plugin,
		"-f", guideFile, "--wait", "--timeout=5m"}, values...)...)
	return err
}

// command returns the program's standard output. Its error contains standard error.
func command(name string, args ...string) (string, error) {
	return commandWith(nil, name, args...)
}

func commandWith(input []byte, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = cluster.env
	c.Stdin = bytes.NewReader(input)
	var out, complaints bytes.Buffer
	c.Stdout, c.Stderr = &out, &complaints
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(complaints.String()))
	}
	return out.String(), nil
}

func applyText(manifest string) error {
	_, err := commandWith([]byte(manifest), "kubectl", "apply", "--validate=strict", "-f", "-")
	return err
}

func logsDirectory() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "step-csi", "e2e"), err
}

// podLogs prints the logs of all pods.
const podLogs = `kubectl get pods -A --no-headers -o custom-columns=:metadata.namespace,:metadata.name | while read -r namespace name; do
	echo "== $namespace/$name"
	kubectl -n "$namespace" logs "$name" --all-containers --tail=100
done`

// keepLogs writes the logs of the plugin, the kubelet and the pods into a directory,
// and the end of the plugin's log into the test's log.
func keepLogs(t *testing.T) {
	logs, err := logsDirectory()
	if err != nil {
		t.Log(err)
		return
	}
	directory := filepath.Join(logs, strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.MkdirAll(directory, 0o755); err != nil {
		t.Log(err)
		return
	}
	for name, args := range map[string][]string{
		"plugin.log":   {"kubectl", "-n", plugin, "logs", "-l", "app.kubernetes.io/name=step-csi", "--tail=-1", "--prefix"},
		"ra.log":       {"kubectl", "-n", plugin, "logs", "-l", "app.kubernetes.io/name=step-csi-ra", "--tail=-1", "--prefix"},
		"step-ca.log":  {"kubectl", "-n", identity, "logs", "-l", "app.kubernetes.io/name=step-ca", "--tail=-1"},
		"pods.log":     {"sh", "-c", podLogs},
		"pods.txt":     {"kubectl", "get", "pods", "-A", "-o", "wide"},
		"describe.txt": {"kubectl", "describe", "pods", "-A"},
		"events.txt":   {"kubectl", "get", "events", "-A", "--sort-by=.lastTimestamp"},
		"kubelet.log":  {cluster.tool, "--name", cluster.name, "exec", "tail", "-n", "2000", "/var/log/kubelet.log"},
	} {
		out, err := command(args[0], args[1:]...)
		if err != nil {
			out += "\n" + err.Error()
		}
		if err := os.WriteFile(filepath.Join(directory, name), []byte(out), 0o644); err != nil {
			t.Log(err)
		}
		if name == "plugin.log" {
			t.Logf("the end of the plugin's log:\n%s", out[max(0, len(out)-3000):])
		}
	}
	t.Logf("the logs are in %s", directory)
}
