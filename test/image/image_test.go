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
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	version  = "v0.1.0"
	revision = "0123456789abcdef0123456789abcdef01234567"
	epoch    = 1700000000 // neither 0 nor now, so the build must take it from SOURCE_DATE_EPOCH
)

// expectation describes an image as it must be.
type expectation struct {
	title      string
	variable   string // prefix of build.sh's variables for this image
	user       string
	entrypoint string
	programs   map[string]string // the files, with the arguments that print the version
	maxSize    int               // bytes
}

var expectations = []expectation{
	{
		title: "step-csi", user: "0:0", entrypoint: "/step-csi", maxSize: 50_000_000,
		programs: map[string]string{"step-csi": "version", "step-csi-reload": "--version"},
	},
	{
		title: "step-csi-reload", variable: "RELOAD_", user: "65534:65534", entrypoint: "/step-csi-reload", maxSize: 8_000_000,
		programs: map[string]string{"step-csi-reload": "--version"},
	},
}

func (e expectation) name() string { return "localhost/" + e.title + "-image-test:dev" }

// TestImage builds both images twice, as if on two machines: the second source is in
// another directory with other times and modes, and the builds share only Go's cache.
func TestImage(t *testing.T) {
	first := build(t, "../..", "022", "UTC", "")
	second := build(t, copySource(t), "077", "Asia/Tokyo", "")
	for _, want := range expectations {
		t.Run(want.title, func(t *testing.T) {
			got := load(t, filepath.Join(first, want.title), want.name())
			again := load(t, filepath.Join(second, want.title), want.name())
			if got.id != again.id {
				t.Errorf("two builds of the same source differ:\n%s\n%s\n%s\n%s", got.id, got.config, again.id, again.config)
			}
			checkConfiguration(t, got, want)
			for name, program := range checkFiles(t, got, want) {
				t.Run(name, func(t *testing.T) { checkProgram(t, name, program, want.programs[name]) })
			}
		})
	}
}

// build runs the source's build.sh with its own image storage, and returns a directory
// with an archive of each image.
func build(t *testing.T, root, umask, zone, platform string) string {
	t.Helper()
	archives := t.TempDir()
	command := exec.Command("sh", "-c", "umask "+umask+" && exec deploy/image/build.sh")
	command.Dir = root
	command.Env = append(os.Environ(), "GOCACHE="+goEnv(t, "GOCACHE"), "XDG_CACHE_HOME="+t.TempDir(), "TZ="+zone,
		"BASE=local", "BUILDER=buildah", "VERSION="+version, "REVISION="+revision, "SOURCE_DATE_EPOCH="+strconv.Itoa(epoch), "PLATFORM="+platform)
	for _, e := range expectations {
		command.Env = append(command.Env, e.variable+"IMAGE="+e.name(), e.variable+"IMAGE_ARCHIVE="+filepath.Join(archives, e.title))
	}
	start := time.Now()
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("built in %s", time.Since(start).Round(time.Second/10))
	return archives
}

func goEnv(t *testing.T, key string) string {
	t.Helper()
	out, err := exec.Command("go", "env", key).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// copySource copies the source of the images, without git and with new times and modes.
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
		if errors.Is(err, os.ErrNotExist) { // removed, but not committed
			continue
		}
		to := filepath.Join(root, path)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, content, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// image is one image of a docker archive.
type image struct {
	id     string // digest of the configuration, which contains the digests of the layers
	config []byte
	layers [][]byte
}

func load(t *testing.T, archive, name string) image {
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

// entries iterates over the files of a tar archive.
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

func checkConfiguration(t *testing.T, i image, want expectation) {
	t.Helper()
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
	if c := got.Config; c.User != want.user || !slices.Equal(c.Entrypoint, []string{want.entrypoint}) || len(c.Cmd) != 0 {
		t.Errorf("wrong user, entrypoint or command: %+v", c)
	}
	if got.Created.Unix() != epoch {
		t.Errorf("created %s", got.Created)
	}
	const prefix = "org.opencontainers.image."
	description := got.Config.Labels[prefix+"description"]
	labels := map[string]string{
		prefix + "title": want.title, prefix + "description": description, prefix + "licenses": "Apache-2.0",
		prefix + "source": "https://github.com/flexstack/step-csi", prefix + "version": version, prefix + "revision": revision,
	}
	if !maps.Equal(got.Config.Labels, labels) || description == "" {
		t.Errorf("labels %q", got.Config.Labels)
	}
}

// checkFiles returns the files of the only layer.
func checkFiles(t *testing.T, i image, want expectation) map[string][]byte {
	t.Helper()
	if len(i.layers) != 1 {
		t.Fatalf("the image has %d layers, want 1", len(i.layers))
	}
	if size := len(i.layers[0]); size > want.maxSize {
		t.Errorf("the layer has %d bytes, more than %d", size, want.maxSize)
	}
	files := map[string][]byte{}
	for header, content := range entries(t, bytes.NewReader(i.layers[0])) {
		files[header.Name] = content
		if header.Typeflag != tar.TypeReg || header.FileInfo().Mode().Perm() != 0o755 || header.Uid != 0 || header.Gid != 0 || header.ModTime.Unix() != epoch {
			t.Errorf("%+v", header)
		}
	}
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, slices.Sorted(maps.Keys(want.programs))) {
		t.Errorf("files %q", got)
	}
	return files
}

func checkProgram(t *testing.T, name string, content []byte, versionArgument string) {
	program, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static: %s", name, segment.Type)
		}
	}
	if program.Section(".symtab") != nil || program.Section(".debug_info") != nil {
		t.Errorf("%s has symbols or debugging information", name)
	}
	checkBuild(t, content)

	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, versionArgument).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), name+" "+version+" go") {
		t.Errorf("version: %v, %s", err, out)
	}
}

// checkBuild compares the build flags of the program with those of the Makefile.
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
