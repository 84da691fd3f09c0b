package payload_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flexstack/step-csi/driver/payload"
)

func openRoot(t *testing.T) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func files(pairs ...string) []payload.File {
	var all []payload.File
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, payload.File{Name: pairs[i], Data: []byte(pairs[i+1])})
	}
	return all
}

var open = payload.Access{Mode: 0o444}

func write(t *testing.T, root *os.Root, all []payload.File) {
	t.Helper()
	if err := payload.Write(root, all, open); err != nil {
		t.Fatal(err)
	}
}

// ErrCleanUp tells the caller that the new set is in use.
func TestFailedCleanUp(t *testing.T) {
	root := openRoot(t)
	write(t, root, files("tls.crt", "1"))
	if err := root.MkdirAll("old/full", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := payload.Write(root, files("tls.crt", "2"), open); !errors.Is(err, payload.ErrCleanUp) {
		t.Error(err)
	}
	if data, err := root.ReadFile("tls.crt"); err != nil || string(data) != "2" {
		t.Errorf("%q, %v", data, err)
	}
}

// visible returns the files that a program sees when it lists the directory.
func visible(t *testing.T, root *os.Root) map[string]string {
	t.Helper()
	content := map[string]string{}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "..") {
			continue
		}
		b, err := root.ReadFile(entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		content[entry.Name()] = string(b)
	}
	return content
}

func sets(t *testing.T, root *os.Root) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(root.Name(), "..2*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWriteAndReplace(t *testing.T) {
	root := openRoot(t)
	write(t, root, files("tls.crt", "a1", "tls.key", "b1"))
	if got, want := visible(t, root), map[string]string{"tls.crt": "a1", "tls.key": "b1"}; !maps.Equal(got, want) {
		t.Errorf("first: %v", got)
	}
	write(t, root, files("tls.crt", "a2", "ca.crt", "c2"))
	if got, want := visible(t, root), map[string]string{"tls.crt": "a2", "ca.crt": "c2"}; !maps.Equal(got, want) {
		t.Errorf("second: %v", got)
	}
}

// The previous set stays for one rotation, so that a reader that has resolved ..data
// can finish.
func TestPreviousSetStays(t *testing.T) {
	root := openRoot(t)
	write(t, root, files("tls.crt", "1"))
	first, err := root.Readlink("..data")
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, files("tls.crt", "2"))
	if b, err := root.ReadFile(first + "/tls.crt"); err != nil || string(b) != "1" {
		t.Errorf("%q, %v", b, err)
	}
	write(t, root, files("tls.crt", "3"))
	if _, err := root.Stat(first); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the first set still exists: %v", err)
	}
	if n := len(sets(t, root)); n != 2 {
		t.Errorf("%d sets", n)
	}
}

func TestLeftoversOfACrashAreCleared(t *testing.T) {
	root := openRoot(t)
	write(t, root, files("tls.crt", "1"))
	for _, err := range []error{
		root.Mkdir("..2020_01_01_00_00_00.half", 0o755),
		root.WriteFile("..2020_01_01_00_00_00.half/tls.key", []byte("key"), 0o600),
		root.Symlink("..2020_01_01_00_00_00.half", "..data_tmp"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, root, files("tls.crt", "2"))
	if got := visible(t, root)["tls.crt"]; got != "2" {
		t.Errorf("got %q", got)
	}
	for _, name := range []string{"..2020_01_01_00_00_00.half", "..data_tmp"} {
		if _, err := root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s still exists", name)
		}
	}
}

func TestAFailedWriteChangesNothing(t *testing.T) {
	root := openRoot(t)
	write(t, root, files("tls.crt", "1"))
	before := sets(t, root)
	if err := payload.Write(root, files("tls.crt", "2", "no/such/directory", "x"), open); err == nil {
		t.Fatal("Write did not fail")
	}
	if got, want := visible(t, root), map[string]string{"tls.crt": "1"}; !maps.Equal(got, want) {
		t.Errorf("the visible files are %v", got)
	}
	if after := sets(t, root); !slices.Equal(before, after) {
		t.Errorf("sets before %v, after %v", before, after)
	}
}

func TestModeIgnoresUmask(t *testing.T) {
	root := openRoot(t)
	if err := payload.Write(root, files("tls.key", "k"), payload.Access{Mode: 0o440, Group: nil}); err != nil {
		t.Fatal(err)
	}
	info, err := root.Stat("tls.key")
	if err != nil || info.Mode() != 0o440 {
		t.Errorf("tls.key: mode %v, error %v", info.Mode(), err)
	}
	if info, err := root.Stat("..data"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("..data: mode %v, error %v", info.Mode(), err)
	}
}

// A Write that was killed before the swap leaves links with new names, which point
// to no file. The next Write removes them.
func TestNamesLeftByACrashAreCleared(t *testing.T) {
	root := openRoot(t)
	write(t, root, files("tls.crt", "1"))
	for _, name := range []string{"server.pem", "other.pem"} {
		if err := root.Symlink("..data/"+name, name); err != nil {
			t.Fatal(err)
		}
	}
	write(t, root, files("server.pem", "2"))
	if got, want := visible(t, root), map[string]string{"server.pem": "2"}; !maps.Equal(got, want) {
		t.Errorf("the visible files are %v", got)
	}
}

// A reader that resolves ..data once gets a certificate and a key of the same set.
func TestReadersNeverSeeHalfASet(t *testing.T) {
	root := openRoot(t)
	write(t, root, files("tls.crt", "0", "tls.key", "0"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				set, err := root.Readlink("..data")
				if err != nil {
					t.Error(err)
					return
				}
				certificate, err1 := root.ReadFile(set + "/tls.crt")
				key, err2 := root.ReadFile(set + "/tls.key")
				// The directory is already removed if two rotations happened since Readlink.
				if errors.Is(err1, fs.ErrNotExist) || errors.Is(err2, fs.ErrNotExist) {
					continue
				}
				if err := errors.Join(err1, err2); err != nil || string(certificate) != string(key) {
					t.Errorf("certificate %q with key %q, error %v", certificate, key, err)
					return
				}
			}
		})
	}
	for i := range 300 {
		n := strings.Repeat("x", i)
		write(t, root, files("tls.crt", n, "tls.key", n))
	}
	close(stop)
	wg.Wait()
}
