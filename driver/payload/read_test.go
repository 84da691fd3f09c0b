package payload_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/flexstack/step-csi/driver/payload"
)

// Whatever another process puts in the place of a file, reading it neither blocks nor
// needs much memory.
func TestForeignFiles(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"a FIFO":      func(path string) error { return syscall.Mkfifo(path, 0o666) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"a terabyte":  func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 1<<40)) },
		"a link":      func(path string) error { return os.Symlink("/etc/passwd", path) },
		"a lease": func(path string) error {
			file, err := os.Create(path)
			if err != nil {
				return err
			}
			t.Cleanup(func() { file.Close() })
			_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
			return err
		},
	} {
		root := openRoot(t)
		if err := put(filepath.Join(root.Name(), "tls.key")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if data, err := payload.ReadFile(root, "tls.key"); err == nil {
			t.Errorf("%s: read %d bytes", name, len(data))
		}
		if _, err := payload.ReadKey(root, "tls.key"); err == nil {
			t.Errorf("%s: read a key", name)
		}
		if directory, err := payload.OpenDirectory(root, "tls.key"); err == nil {
			directory.Close()
			if name != "a directory" {
				t.Errorf("%s: opened as a directory", name)
			}
		}
	}
}

func TestFileSizes(t *testing.T) {
	root := openRoot(t)
	for size, want := range map[int]bool{0: true, payload.MaxFile: true, payload.MaxFile + 1: false} {
		if err := root.WriteFile("ca.crt", make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
		if data, err := payload.ReadFile(root, "ca.crt"); (err == nil) != want || want && len(data) != size {
			t.Errorf("%d bytes: read %d, %v", size, len(data), err)
		}
	}
	// Parsing a large RSA key takes long.
	if err := root.WriteFile("tls.key", make([]byte, 16<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := payload.ReadKey(root, "tls.key"); !errors.Is(err, payload.ErrForeign) {
		t.Errorf("a large key: %v", err)
	}
}

// Write fails for a volume with more names than it ever writes, and works as soon as they
// are gone.
func TestManyNames(t *testing.T) {
	for _, directory := range []string{".", "..leftover"} {
		root := openRoot(t)
		write(t, root, files("tls.crt", "1"))
		if err := root.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			if err := root.Symlink("x", filepath.Join(directory, fmt.Sprint("..", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := payload.Write(root, files("tls.crt", "2"), open); !errors.Is(err, payload.ErrForeign) || !strings.Contains(err.Error(), "more than 128 names") {
			t.Errorf("%s: %v", directory, err)
		}
		for i := range 200 {
			if err := root.Remove(filepath.Join(directory, fmt.Sprint("..", i))); err != nil {
				t.Fatal(err)
			}
		}
		write(t, root, files("tls.crt", "2"))
	}
}
