// Command images makes the other images of the end-to-end tests, without a registry:
// step-ca, NATS, PostgreSQL, nginx, curl, the examples' application, and a program that
// uses SPIFFE. The images have the names of the public images, but are made from
// Debian's packages and Go modules. The command prints the path of an OCI archive with
// all images.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// packages are the Debian packages besides the essential ones.
const packages = "postgresql-15,nginx-light,curl,openssl,busybox-static"

// excluded are files of the packages that no test uses.
var excluded = []string{"/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/i18n/*", "/usr/lib/x86_64-linux-gnu/libLLVM*", "/usr/lib/llvm*", "/usr/lib/*/libz3*"}

// postgresPasswd is the user postgres of the official PostgreSQL image.
const postgresPasswd = "postgres:x:999:999::/var/lib/postgresql:/bin/bash\n"

// programs are the Go programs in the images. Directories are relative to the
// repository.
var programs = []struct{ directory, target, tags string }{
	{"test/realca/module", "tool", ""}, // step-ca and step
	{"test/e2e/images/nats", "tool", ""},
	{".", "./deploy/examples/mtls/app", ""},
	{".", "./test/e2e/images/spiffe", ""},
	{".", "./cmd/step-csi-reload", ""},
}

// image is a name and a configuration. All images have the same files.
type image struct {
	name       string
	user       string
	env        []string
	entrypoint []string
	cmd        []string
}

const path = "PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var images = []image{
	{name: "docker.io/smallstep/step-ca:0.30.2", user: "1000:1000",
		env:        []string{path, "HOME=/home/step", "STEPPATH=/home/step", "CONFIGPATH=/home/step/config/ca.json", "PWDPATH=/home/step/secrets/password"},
		entrypoint: []string{"/bin/bash", "/entrypoint.sh"},
		cmd:        []string{"/usr/local/bin/step-ca", "--password-file", "/home/step/secrets/password", "/home/step/config/ca.json"}},
	{name: "docker.io/library/nats:2.15.2-alpine", env: []string{path}, entrypoint: []string{"nats-entrypoint.sh"}, cmd: []string{"nats-server"}},
	{name: "docker.io/natsio/nats-box:0.16.0", env: []string{path}, cmd: []string{"sh"}},
	{name: "docker.io/library/postgres:15", env: []string{path, "PGDATA=/var/lib/postgresql/data"},
		entrypoint: []string{"/usr/local/bin/postgres-entrypoint.sh"}, cmd: []string{"postgres"}},
	{name: "docker.io/curlimages/curl:8.11.1", user: "100", env: []string{path}, entrypoint: []string{"curl"}},
	{name: "docker.io/library/busybox:1.37", env: []string{"PATH=/busybox"}, cmd: []string{"sh"}},
	{name: "ghcr.io/flexstack/step-csi-example:0.1.0", user: "65532:65532", env: []string{path}, entrypoint: []string{"/usr/local/bin/app"}},
	{name: "ghcr.io/flexstack/step-csi-nginx:0.1.0", user: "33:33", env: []string{path}},
	{name: "ghcr.io/flexstack/step-csi-spiffe:test", user: "65532:65532", env: []string{path}, entrypoint: []string{"/usr/local/bin/spiffe"}},
}

// applets are the commands that busybox provides.
var applets = strings.Fields("sh mount ls cat sleep id stat wc sha256sum wget env readlink date true touch mkdir rm head tail sort grep ps kill test cp seq base64")

func main() {
	archive, err := build(time.Now())
	if err != nil {
		fmt.Fprintf(os.Stderr, "images: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(archive)
}

// build returns the archive, and makes it if it is not in the cache. Its name is a hash
// of all sources.
func build(begin time.Time) (string, error) {
	top, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("run this command inside the repository: %w", err)
	}
	if err := os.Chdir(strings.TrimSpace(string(top))); err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "step-csi", "images")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	key, err := sourceKey()
	if err != nil {
		return "", err
	}
	archive := filepath.Join(cache, key+".tar")
	// The modification time is the time of the last use.
	if err := os.Chtimes(archive, time.Time{}, begin); err == nil {
		return archive, nil
	}
	work, err := os.MkdirTemp(cache, ".building-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	say := func(what string) { fmt.Fprintf(os.Stderr, "  %s: %.0f s\n", what, time.Since(begin).Seconds()) }
	fmt.Fprintln(os.Stderr, "Making the images of the tests. The first time, this takes about 5 min on two cores.")
	base, err := debian(cache)
	if err != nil {
		return "", err
	}
	say("Debian's packages")
	upper := filepath.Join(work, "programs.tar")
	if err := buildPrograms(work, base, upper); err != nil {
		return "", err
	}
	say("Go programs")
	made := filepath.Join(work, "images.tar")
	if err := writeArchive(made, []string{base, upper}); err != nil {
		return "", err
	}
	if err := removeOld(cache, base, begin.Add(-24*time.Hour)); err != nil {
		return "", err
	}
	say("archive")
	return archive, os.Rename(made, archive)
}

// sourceKey hashes the sources, the Go version and the list of Debian packages.
func sourceKey() (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOARCH, packages, excluded, images)
	for _, directory := range []string{"test/e2e/images", "test/realca/module", "deploy/examples/mtls/app", "cmd/step-csi-reload"} {
		err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			fmt.Fprintf(hash, "%s %d\n%s", path, len(content), content)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// removeOld removes archives that were last used before since. It keeps newer ones,
// because another checkout may use them.
func removeOld(cache, base string, since time.Time) error {
	archives, err := filepath.Glob(filepath.Join(cache, "*.tar"))
	for _, archive := range archives {
		info, statErr := os.Stat(archive)
		if statErr == nil && archive != base && info.ModTime().Before(since) {
			err = errors.Join(err, os.Remove(archive))
		}
	}
	return err
}

// debian makes the root file system, unless it is in the cache. It installs the current
// packages.
func debian(cache string) (string, error) {
	sum := sha256.Sum256(fmt.Append(nil, packages, excluded))
	base := filepath.Join(cache, "debian-"+hex.EncodeToString(sum[:8])+".tar")
	if _, err := os.Stat(base); err == nil {
		return base, nil
	}
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return "", errors.New("mmdebstrap is missing; on Debian or Ubuntu: apt-get install mmdebstrap")
	}
	args := []string{"--quiet", "--variant=essential", "--include=" + packages, "--format=tar"}
	for _, pattern := range excluded {
		args = append(args, "--dpkgopt=path-exclude="+pattern)
	}
	// Without this, the package creates a database cluster that no test uses.
	args = append(args, "--essential-hook=mkdir -p $1/etc/postgresql-common && echo 'create_main_cluster = false' > $1/etc/postgresql-common/createcluster.conf",
		"bookworm", base+".part")
	command := exec.Command(program, args...)
	command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=0")
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, out)
	}
	return base, os.Rename(base+".part", base)
}

// buildPrograms writes the second layer: programs, entrypoints and users.
func buildPrograms(work, base, layer string) error {
	bin := filepath.Join(work, "bin")
	for _, p := range programs {
		command := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", p.tags, "-ldflags", "-s -w", "-o", bin+"/", p.target)
		command.Dir = p.directory
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s in %s: %w\n%s", p.target, p.directory, err, out)
		}
	}
	l, err := newLayer(layer)
	if err != nil {
		return err
	}
	defer l.Close()
	built, err := os.ReadDir(bin)
	if err != nil {
		return err
	}
	for _, program := range built {
		if err := l.copy(filepath.Join(bin, program.Name()), "usr/local/bin/"+program.Name()); err != nil {
			return err
		}
	}
	module := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/smallstep/certificates")
	module.Dir = "test/realca/module"
	directory, err := module.Output()
	if err != nil {
		return fmt.Errorf("find step-ca's module: %w", err)
	}
	if err := l.copy(filepath.Join(strings.TrimSpace(string(directory)), "docker", "entrypoint.sh"), "entrypoint.sh"); err != nil {
		return err
	}
	for _, script := range []string{"nats-entrypoint.sh", "postgres-entrypoint.sh"} {
		if err := l.copy("test/e2e/images/"+script, "usr/local/bin/"+script); err != nil {
			return err
		}
	}
	passwd, err := exec.Command("tar", "--extract", "--to-stdout", "--file", base, "./etc/passwd").Output()
	if err != nil {
		return fmt.Errorf("read /etc/passwd: %w", err)
	}
	users := postgresPasswd + "step:x:1000:1000::/home/step:/bin/bash\n"
	for line := range strings.Lines(string(passwd)) {
		if !strings.HasPrefix(line, "postgres:") {
			users += line
		}
	}
	if err := l.file("etc/passwd", 0o644, []byte(users)); err != nil {
		return err
	}
	for _, applet := range applets {
		if err := l.link("busybox/"+applet, "/bin/busybox"); err != nil {
			return err
		}
	}
	return errors.Join(l.directory("home/step", 1000), l.directory("var/lib/postgresql/data", 999), l.directory("var/run/postgresql", 999))
}

// layer is a tar file without modification times.
type layer struct {
	*tar.Writer
	to *os.File
}

func newLayer(path string) (*layer, error) {
	file, err := os.Create(path)
	return &layer{tar.NewWriter(file), file}, err
}

func (l *layer) Close() error { return errors.Join(l.Writer.Close(), l.to.Close()) }

func (l *layer) copy(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return l.file(to, 0o755, content)
}

// bindService is the extended attribute that setcap CAP_NET_BIND_SERVICE=+eip
// writes (struct vfs_cap_data, revision 2). The public image has it on step-ca,
// which therefore does not start in a container that drops the capability.
const bindService = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func (l *layer) file(name string, mode int64, content []byte) error {
	header := &tar.Header{Name: name, Mode: mode, Size: int64(len(content))}
	if name == "usr/local/bin/step-ca" {
		header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": bindService}
	}
	if err := l.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(l, bytes.NewReader(content))
	return err
}

func (l *layer) link(name, target string) error {
	return l.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
}

func (l *layer) directory(name string, owner int) error {
	return l.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Uid: owner, Gid: owner, Mode: 0o755})
}
