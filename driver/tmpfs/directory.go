package tmpfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Directory contains the targets. It follows no symbolic link below it, so that a
// process that can write there cannot redirect a mount or an unmount.
type Directory struct {
	file *os.File
	path string // without symbolic links
}

// OpenDirectory opens the directory at path, which may itself be a symbolic
// link.
func OpenDirectory(path string) (*Directory, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(resolved, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Directory{file: file, path: resolved}, nil
}

// Close closes the directory.
func (d *Directory) Close() error { return d.file.Close() }

// Is tells whether path leads to the directory, which may have several paths: by symbolic
// links, or by bind mounts.
func (d *Directory) Is(path string) bool {
	other, err := os.Stat(path)
	if err != nil {
		return false
	}
	own, err := d.file.Stat()
	return err == nil && os.SameFile(own, other)
}

// Relative returns a path of the mount table relative to the directory.
func (d *Directory) Relative(mountPoint string) (string, bool) {
	relative, err := filepath.Rel(d.path, mountPoint)
	return relative, err == nil && filepath.IsLocal(relative)
}

// Open opens the directory at the relative path, or the root of a mount there. The
// error is fs.ErrNotExist if there is no directory.
func (d *Directory) Open(relative string) (*os.File, error) {
	fd, err := unix.Openat2(int(d.file.Fd()), relative, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	path := filepath.Join(d.path, relative)
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%s: the path contains a symbolic link, and no link below the kubelet's directory is followed; use a bind mount instead: %w", path, err)
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Target is an open directory to attach a mount at.
type Target struct {
	*os.File
	directory *Directory
	relative  string
	made      bool // Make made the directory
}

// Make makes the directory at the relative path, unless it exists, and opens it. The
// parent must exist. After an error, Make leaves no new directory.
func (d *Directory) Make(relative string) (*Target, error) {
	parent, err := d.Open(filepath.Dir(relative))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), filepath.Base(relative), 0o750)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkdir", Path: filepath.Join(d.path, relative), Err: err}
	}
	target := &Target{directory: d, relative: relative, made: err == nil}
	if target.File, err = d.Open(relative); err != nil {
		target.Abandon()
		return nil, err
	}
	return target, nil
}

// Abandon removes the directory if Make made it.
func (t *Target) Abandon() {
	if t.made {
		_ = t.directory.Remove(t.relative)
	}
}

// Remove removes the empty directory at the relative path. It succeeds if there is no
// directory.
func (d *Directory) Remove(relative string) error {
	parent, err := d.Open(filepath.Dir(relative))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Unlinkat(int(parent.Fd()), filepath.Base(relative), unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: filepath.Join(d.path, relative), Err: err}
	}
	return nil
}
