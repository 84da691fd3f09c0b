package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// kubernetesVersion is that of k8s.io/kubernetes in go.mod. The programs do not
// know it by themselves when they are built as a dependency.
const kubernetesVersion = "v1.37.2"

// kubernetesNames are the names that the one program of ./kubernetes goes by.
var kubernetesNames = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"}

// unusedAfter is when programs of another version are removed.
const unusedAfter = 30 * 24 * time.Hour

// step is one call of go build.
type step struct {
	title, module, target string
	ldflags               string
}

func steps() []step {
	version := "k8s.io/component-base/version."
	major, minor, _ := strings.Cut(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	return []step{
		{"Kubernetes and etcd", ".", "./kubernetes", fmt.Sprintf(" -X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s",
			version, kubernetesVersion, version, major, version, minor)},
		{"containerd", ".", "tool", ""},
		{"CoreDNS", "coredns", "tool", ""},
		{"Helm", "helm", "helm.sh/helm/v4/cmd/helm", ""},
	}
}

// buildPrograms builds what the cluster is made of, unless the cache has it, and
// returns the directory. Its name is a hash of all that goes in.
func buildPrograms(source, cache string, progress io.Writer) (string, error) {
	key, err := sourceKey(source)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	done := filepath.Join(cache, key)
	if _, err := os.Stat(done); err == nil {
		now := time.Now()
		return done, os.Chtimes(done, now, now)
	}
	removeUnused(cache)

	fmt.Fprintln(progress, "Building the cluster's programs, once: about 12 min on two cores if Go has not built them before.")
	building, err := os.MkdirTemp(cache, ".building-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(building)
	for _, s := range steps() {
		if err := s.build(source, building, progress); err != nil {
			return "", fmt.Errorf("build %s: %w", s.title, err)
		}
	}
	for _, name := range kubernetesNames {
		if err := os.Symlink("kubernetes", filepath.Join(building, name)); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(building, 0o755); err != nil {
		return "", err
	}
	return done, os.Rename(building, done)
}

// sourceKey hashes the Go version and what the programs are built from.
func sourceKey(source string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOARCH, steps())
	for _, name := range []string{"go.mod", "go.sum", "kubernetes/main.go", "coredns/go.mod", "coredns/go.sum", "helm/go.mod", "helm/go.sum"} {
		content, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", fmt.Errorf("%w; run it at the top of the repository, or give --source", err)
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(content), content)
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// build runs go build and says every 15 s how far it is.
func (s step) build(source, into string, progress io.Writer) error {
	begin := time.Now()
	command := exec.Command("go", "build", "-v", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w"+s.ldflags, "-o", into+"/", s.target)
	command.Dir = filepath.Join(source, s.module)
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOGC=400")
	names, err := command.StderrPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	var packages atomic.Int64
	ticker := time.NewTicker(15 * time.Second)
	defer ticker.Stop()
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		for {
			select {
			case <-ticker.C:
				fmt.Fprintf(progress, "  %s: %d packages, %.0f s\n", s.title, packages.Load(), time.Since(begin).Seconds())
			case <-stopped:
				return
			}
		}
	}()
	// With -v, go prints a package's name a line; anything else is an error.
	var said strings.Builder
	for lines := bufio.NewScanner(names); lines.Scan(); packages.Add(1) {
		if line := lines.Text(); strings.Contains(line, " ") && !strings.HasPrefix(line, "go: downloading") {
			said.WriteString("\n" + line)
		}
	}
	if err := command.Wait(); err != nil {
		return fmt.Errorf("%w%s", err, said.String())
	}
	fmt.Fprintf(progress, "  %s: built in %.0f s\n", s.title, time.Since(begin).Seconds())
	return nil
}

// removeUnused removes programs that no cluster was started with for a month,
// and what an interrupted build left. The caller holds the lock.
func removeUnused(cache string) {
	entries, _ := os.ReadDir(cache)
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !entry.IsDir() {
			continue
		}
		if strings.HasPrefix(entry.Name(), ".building-") || time.Since(info.ModTime()) > unusedAfter {
			os.RemoveAll(filepath.Join(cache, entry.Name()))
		}
	}
}

// lock waits for the file's lock.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return func() { file.Close() }, nil
}
