//go:build e2e

package image

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	version  = "v0.1.0"
	revision = "0123456789abcdef0123456789abcdef01234567"
	epoch    = "1700000000" // neither 0 nor now, so that it has to come from where it should
	name     = "localhost/step-csi-image-test:dev"
)

// TestImage builds twice, as if on two machines: the source is in another place,
// with other times and modes, and nothing but Go's cache is shared.
func TestImage(t *testing.T) {
	first := load(t, build(t, "../..", "022", "UTC"))
	t.Run("reproducible", func(t *testing.T) {
		second := load(t, build(t, copySource(t), "077", "Asia/Tokyo"))
		if first.id != second.id {
			t.Errorf("two builds of the same source differ:\n%s\n%s\n%s\n%s", first.id, first.config, second.id, second.config)
		}
	})
	t.Run("configuration", func(t *testing.T) { checkConfiguration(t, first) })
	t.Run("one file", func(t *testing.T) { checkFiles(t, first) })
	t.Run("program", func(t *testing.T) { checkProgram(t, first) })
}

// build runs the script of the source in root, with a storage of its own, and
// returns the archive.
func build(t *testing.T, root, umask, zone string) string {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "image.tar")
	command := exec.Command("sh", "-c", "umask "+umask+" && exec deploy/image/build.sh")
	command.Dir = root
	command.Env = append(os.Environ(), "GOCACHE="+goEnv(t, "GOCACHE"), "XDG_CACHE_HOME="+t.TempDir(), "TZ="+zone,
		"BASE=local", "BUILDER=buildah", "IMAGE="+name, "VERSION="+version, "REVISION="+revision, "SOURCE_DATE_EPOCH="+epoch, "PLATFORM=", "IMAGE_ARCHIVE="+archive)
	start := time.Now()
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("built in %s", time.Since(start).Round(time.Second/10))
	return archive
}

func goEnv(t *testing.T, key string) string {
	t.Helper()
	out, err := exec.Command("go", "env", key).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// copySource copies what an image is made from, without git, and with times and
// modes that are the copy's own.
func copySource(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	out, err := exec.Command("git", "-C", "../..", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--",
		"go.mod", "go.sum", "Dockerfile", ".dockerignore", "deploy/image", "cmd", "driver", "issuer").Output()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join("../..", path))
		if errors.Is(err, os.ErrNotExist) { // removed, and not committed
			continue
		}
		to := filepath.Join(root, path)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, content, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// image is what a docker archive holds.
type image struct {
	id     string // the digest of its configuration, which has those of its layers
	config []byte
	layers [][]byte
}

func load(t *testing.T, archive string) image {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	for header, content := range entries(t, f) {
		files[header.Name] = content
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil || len(manifest) != 1 {
		t.Fatalf("%v: %s", err, files["manifest.json"])
	}
	if tags := manifest[0].RepoTags; len(tags) != 1 || tags[0] != name {
		t.Errorf("tags %q", tags)
	}
	i := image{id: manifest[0].Config, config: files[manifest[0].Config]}
	for _, layer := range manifest[0].Layers {
		i.layers = append(i.layers, files[layer])
	}
	return i
}

// entries are the files of a tar archive.
func entries(t *testing.T, r io.Reader) func(yield func(*tar.Header, []byte) bool) {
	return func(yield func(*tar.Header, []byte) bool) {
		t.Helper()
		for archive := tar.NewReader(r); ; {
			header, err := archive.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(archive)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(header, content) {
				return
			}
		}
	}
}

func checkConfiguration(t *testing.T, i image) {
	var got struct {
		Created time.Time
		Config  struct {
			User            string
			Entrypoint, Cmd []string
			Labels          map[string]string
		}
	}
	if err := json.Unmarshal(i.config, &got); err != nil {
		t.Fatal(err)
	}
	if c := got.Config; c.User != "0:0" || len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/step-csi" || len(c.Cmd) != 0 {
		t.Errorf("user, entrypoint or command: %+v", c)
	}
	if got.Created.Unix() != 1700000000 {
		t.Errorf("created %s", got.Created)
	}
	const prefix = "org.opencontainers.image."
	description := got.Config.Labels[prefix+"description"]
	want := map[string]string{
		prefix + "title": "step-csi", prefix + "description": description, prefix + "licenses": "Apache-2.0",
		prefix + "source": "https://github.com/flexstack/step-csi", prefix + "version": version, prefix + "revision": revision,
	}
	if !maps.Equal(got.Config.Labels, want) || description == "" {
		t.Errorf("labels %q", got.Config.Labels)
	}
}

func checkFiles(t *testing.T, i image) {
	if len(i.layers) != 1 {
		t.Fatalf("%d layers", len(i.layers))
	}
	var all []string
	for header := range entries(t, bytes.NewReader(i.layers[0])) {
		all = append(all, header.Name)
		if header.Typeflag != tar.TypeReg || header.FileInfo().Mode().Perm() != 0o755 || header.Uid != 0 || header.Gid != 0 || header.ModTime.Unix() != 1700000000 {
			t.Errorf("%+v", header)
		}
	}
	if len(all) != 1 || all[0] != "step-csi" {
		t.Errorf("files %q", all)
	}
}

func checkProgram(t *testing.T, i image) {
	var content []byte
	for header, c := range entries(t, bytes.NewReader(i.layers[0])) {
		if header.Name == "step-csi" {
			content = c
		}
	}
	program, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("it is not static: %s", segment.Type)
		}
	}
	if program.Section(".symtab") != nil || program.Section(".debug_info") != nil {
		t.Error("it has symbols or debugging information")
	}
	checkBuild(t, content)

	path := filepath.Join(t.TempDir(), "step-csi")
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "step-csi "+version+" go") {
		t.Errorf("version: %v, %s", err, out)
	}
}

// checkBuild holds how the program was built against the Makefile.
func checkBuild(t *testing.T, program []byte) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tags := regexp.MustCompile(`(?m)^TAGS +:= (\S+)$`).FindSubmatch(makefile)
	if tags == nil {
		t.Fatal("the Makefile has no TAGS")
	}
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, setting := range info.Settings {
		got[setting.Key] = setting.Value
	}
	for key, want := range map[string]string{"-tags": string(tags[1]), "-trimpath": "true", "CGO_ENABLED": "0"} {
		if got[key] != want {
			t.Errorf("built with %s %q, not %q", key, got[key], want)
		}
	}
}
