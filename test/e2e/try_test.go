//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// `make try` sets up all of the quick start without a cluster, and prints commands that
// work. A second run changes nothing that works. The commands of the README's quick start
// work as written in the same cluster.
func try(t *testing.T) {
	name := cluster.name + "-try"
	t.Cleanup(func() {
		if _, err := makeTarget("cluster-down", name); err != nil {
			t.Error(err)
		}
		if left, err := command("sh", "-c", "ls -d /sys/fs/cgroup/*/step-csi-"+name+" 2>/dev/null; grep "+name+" /proc/mounts; true"); err != nil || left != "" {
			t.Errorf("the cluster has left control groups or mounts: %v: %s", err, left)
		}
	})
	printed, err := makeTarget("try", name)
	must(t, err)
	inCluster := func(script string) (string, error) {
		return command("sh", "-euc", `eval "$(bin/step-csi-cluster --name `+name+` env)"`+"\n"+script)
	}
	in := func(script string) string {
		t.Helper()
		out, err := inCluster(script)
		must(t, err)
		return out
	}

	_, next, _ := strings.Cut(printed, "Next:\n")
	commands := indented(next)
	if len(commands) != 5 || !strings.Contains(commands[0], name+" env") || commands[4] != "make cluster-down CLUSTER="+name {
		t.Fatalf("make try printed the commands %q", commands)
	}
	if text := in(commands[1]); !strings.Contains(text, "DNS:my-service.default.svc.cluster.local") {
		t.Errorf("the certificate:\n%s", text)
	}
	if log := in(commands[3]); !strings.Contains(log, "try-rotation") {
		t.Errorf("the log of step-csi:\n%s", log)
	}
	watch, ok := strings.CutPrefix(commands[2], "while sleep 2; do ")
	if !ok {
		t.Fatalf("make try prints another command to watch the rotation: %q", commands[2])
	}
	watch = strings.TrimSuffix(watch, "; done")
	first := in(watch)

	pods := func() string {
		return in("kubectl get pods -A -o jsonpath='{range .items[*]}{.metadata.uid} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}' | sort")
	}
	before := pods()
	_, err = makeTarget("try", name)
	must(t, err)
	if after := pods(); after != before {
		t.Errorf("the second make try restarted pods: before\n%s\nafter\n%s", before, after)
	}
	eventually(t, patience, func() error {
		now, err := inCluster(watch)
		if err == nil && now == first {
			err = fmt.Errorf("the certificate has not been renewed: %s", now)
		}
		return err
	})

	in("kubectl delete pod try-rotation --now && helm uninstall step-csi -n step-csi && kubectl delete namespace step-csi flexstack-identity")
	for _, mark := range []string{"**1. A step-ca", "**2. A namespace", "**3. step-csi**", "**4. A pod**"} {
		script, err := block("README.md", mark, "sh")
		must(t, err)
		if out := in(script); mark == "**4. A pod**" {
			printsQuickStart(t, out)
		}
	}
	// An installation without a mistake logs no errors.
	for _, name := range []string{"step-csi", "step-csi-ra"} {
		log := in("kubectl -n step-csi logs -l app.kubernetes.io/name=" + name + " --tail=-1 --prefix")
		for line := range strings.Lines(log) {
			if strings.Contains(line, "] E") || strings.Contains(line, "panic") {
				t.Errorf("a new installation logs the error: %s", line)
			}
		}
	}
}

// makeTarget runs make for another cluster. It does not build bin/step-csi-cluster again,
// because other scenarios run it at the same time.
func makeTarget(target, name string) (string, error) {
	return command("make", "--no-print-directory", "-o", "bin/step-csi-cluster", target,
		"CLUSTER="+name, "KUBERNETES="+cluster.kubernetes, fmt.Sprintf("OWNER=%d", os.Getpid()))
}

// indented returns the lines that are indented by four spaces.
func indented(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line, ok := strings.CutPrefix(line, "    "); ok {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
