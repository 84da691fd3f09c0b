package main

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// moduleFiles are the versions of Kubernetes that a cluster can have, each with the file
// that lists its modules.
var moduleFiles = map[string]string{
	defaultKubernetes: "go.mod",
	"1.34":            "kubernetes-1.34.mod",
}

const defaultKubernetes = "1.37"

// kubernetesNames are the names of the program ./kubernetes.
var kubernetesNames = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"}

// unusedAfter is how long the cache keeps programs that no cluster uses.
const unusedAfter = 30 * 24 * time.Hour

// step is one call of go build.
type step struct {
	title, module, target string
	modfile               string // in the module's directory; go.mod if empty
	ldflags               string
	sources               []string // beside the module file and its sums
	cgoTags               string   // build with cgo and these tags
}

func steps(source, modfile string) ([]step, error) {
	version, err := kubernetesVersion(filepath.Join(source, modfile))
	if err != nil {
		return nil, err
	}
	variables := "k8s.io/component-base/version."
	major, minor, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	return []step{
		{"Kubernetes " + version + " and etcd", ".", "./kubernetes", modfile, fmt.Sprintf(" -X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s",
			variables, version, variables, major, variables, minor), []string{"kubernetes/main.go"}, ""},
		{"containerd", ".", "tool", "", "", nil, ""},
		{"runc", "runc", "tool", "", "", nil, "seccomp"},
		{"CoreDNS", "coredns", "tool", "", "", nil, ""},
		{"Helm", "helm", "helm.sh/helm/v4/cmd/helm", "", "", nil, ""},
	}, nil
}

var requiredVersion = regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes (v\S+)`)

// kubernetesVersion returns the version in a module file. Programs that are built as a
// dependency do not know their version.
func kubernetesVersion(modfile string) (string, error) {
	content, err := os.ReadFile(modfile)
	if err != nil {
		return "", fmt.Errorf("%w; run step-csi-cluster at the top of the repository, or set --source", err)
	}
	version := requiredVersion.FindSubmatch(content)
	if version == nil {
		return "", fmt.Errorf("%s does not require k8s.io/kubernetes", modfile)
	}
	return string(version[1]), nil
}

// buildSuite builds Kubernetes' external storage suite, unless it is in the cache, and
// returns the program's path.
func buildSuite(source, modfile, cache string, progress io.Writer) (string, error) {
	unlock, err := lockCache(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	suite := step{"Kubernetes' external storage suite", ".", "./storagesuite", modfile, "", []string{"storagesuite/main.go"}, ""}
	part, err := suite.cached(source, cache, progress)
	return filepath.Join(part, "storagesuite"), err
}

// buildPrograms builds the cluster's programs, unless they are in the cache, and
// returns their directory. Its name is a hash of all sources.
func buildPrograms(source, modfile, cache string, progress io.Writer) (string, error) {
	unlock, err := lockCache(cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	all, err := steps(source, modfile)
	if err != nil {
		return "", err
	}
	var parts []string
	hash := sha256.New()
	for _, s := range all {
		part, err := s.cached(source, cache, progress)
		if err != nil {
			return "", fmt.Errorf("build %s: %w", s.title, err)
		}
		parts = append(parts, part)
		fmt.Fprintln(hash, part)
	}
	done := filepath.Join(cache, hex.EncodeToString(hash.Sum(nil)[:8]))
	if _, err := os.Stat(done); err == nil {
		now := time.Now()
		return done, os.Chtimes(done, now, now)
	}
	removeUnused(cache)
	return done, gather(parts, cache, done)
}

// gather makes one directory with hard links to the programs of all parts.
func gather(parts []string, cache, done string) error {
	building, err := os.MkdirTemp(cache, ".building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(building)
	for _, part := range parts {
		entries, err := os.ReadDir(part)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := os.Link(filepath.Join(part, entry.Name()), filepath.Join(building, entry.Name())); err != nil {
				return err
			}
		}
	}
	for _, name := range kubernetesNames {
		if err := os.Symlink("kubernetes", filepath.Join(building, name)); err != nil {
			return err
		}
	}
	if err := os.Chmod(building, 0o755); err != nil {
		return err
	}
	return os.Rename(building, done)
}

// cached returns the directory with the step's programs. The caller holds the cache's
// lock.
func (s step) cached(source, cache string, progress io.Writer) (string, error) {
	key, err := s.key(source)
	if err != nil {
		return "", err
	}
	done := filepath.Join(cache, "part-"+key)
	if _, err := os.Stat(done); err == nil {
		now := time.Now()
		return done, os.Chtimes(done, now, now)
	}
	building, err := os.MkdirTemp(cache, ".building-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(building)
	if err := s.build(source, building, progress); err != nil {
		return "", err
	}
	return done, os.Rename(building, done)
}

// key hashes the Go version and the sources of the step's programs.
func (s step) key(source string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOARCH, s)
	modfile := cmp.Or(s.modfile, "go.mod")
	for _, name := range append([]string{modfile, strings.TrimSuffix(modfile, ".mod") + ".sum"}, s.sources...) {
		content, err := os.ReadFile(filepath.Join(source, s.module, name))
		if err != nil {
			return "", fmt.Errorf("%w; run step-csi-cluster at the top of the repository, or set --source", err)
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(content), content)
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// build runs go build and prints its progress every 15 s.
func (s step) build(source, into string, progress io.Writer) error {
	begin := time.Now()
	fmt.Fprintf(progress, "Building %s. The first build of all programs takes about 12 min on two cores.\n", s.title)
	args := []string{"build", "-v", "-buildvcs=false", "-trimpath", "-tags", s.cgoTags, "-ldflags", "-s -w" + s.ldflags, "-o", into + "/"}
	if s.modfile != "" {
		args = append(args, "-modfile="+s.modfile)
	}
	command := exec.Command("go", append(args, s.target)...)
	command.Dir = filepath.Join(source, s.module)
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOGC=400")
	if s.cgoTags != "" {
		command.Env = append(command.Env, "CGO_ENABLED=1")
	}
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
	// With -v, go prints one package name per line. All other lines are errors.
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

// removeUnused removes programs that no cluster has used for a month, and the leftovers
// of interrupted builds. The caller holds the lock.
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

// lockCache makes the cache's directory and waits for its lock.
func lockCache(cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(cache, "lock")
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
