// Package payload writes a set of files so that a reader sees either all of the
// old ones or all of the new ones, in the way the kubelet writes Secrets and
// ConfigMaps: the files are in a directory of their own, `..data` is a symbolic
// link to it that one rename replaces, and each visible name is a symbolic link
// through `..data`. Programs that watch for such a rename keep working.
//
// See https://pkg.go.dev/k8s.io/kubernetes/pkg/volume/util#AtomicWriter for the
// kubelet's own.
package payload

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

const (
	dataLink = "..data"
	newLink  = "..data_tmp"
	// reserved is how the names begin that users cannot have.
	reserved = ".."
)

// File is one file of a set.
type File struct {
	Name string
	Data []byte
}

// Access is who may read the files. The owner is root.
type Access struct {
	Mode fs.FileMode
	// Group is the group of the files, or nil for root's.
	Group *int
}

// Write replaces the set of files in root by another one. The set before it
// stays until the next Write, for readers that are about to open it; what is
// older, or was left by a Write that did not end, is removed.
func Write(root *os.Root, files []File, access Access) error {
	current, err := currentSet(root)
	if err != nil {
		return err
	}
	if err := removeSetsBut(root, current); err != nil {
		return fmt.Errorf("clear old files: %w", err)
	}
	set := setName(time.Now())
	if err := writeSet(root, set, files, access); err != nil {
		return errors.Join(err, root.RemoveAll(set))
	}
	if err := swap(root, set); err != nil {
		return errors.Join(fmt.Errorf("swap %s: %w", dataLink, err), root.RemoveAll(set))
	}
	return linkNames(root, files)
}

// currentSet is the name of the set that is in use, or empty at first.
func currentSet(root *os.Root) (string, error) {
	set, err := root.Readlink(dataLink)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return set, err
}

func removeSetsBut(root *os.Root, current string) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, reserved) || name == dataLink || name == current {
			continue
		}
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// setName sorts by time, as the kubelet's do, and never comes twice.
func setName(now time.Time) string {
	return reserved + now.UTC().Format("2006_01_02_15_04_05.") + rand.Text()[:10]
}

func writeSet(root *os.Root, set string, files []File, access Access) error {
	if err := root.Mkdir(set, 0o755); err != nil {
		return err
	}
	// Neither mkdir nor open may have its mode cut by the process's umask.
	if err := root.Chmod(set, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		if err := writeFile(root, set+"/"+file.Name, file.Data, access); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(root *os.Root, name string, data []byte, access Access) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if access.Group != nil {
		if err := f.Chown(0, *access.Group); err != nil {
			return err
		}
	}
	if err := f.Chmod(access.Mode); err != nil {
		return err
	}
	_, err = f.Write(data)
	return err
}

func swap(root *os.Root, set string) error {
	if err := root.Symlink(set, newLink); err != nil {
		return err
	}
	return root.Rename(newLink, dataLink)
}

// linkNames makes the visible names those of files.
func linkNames(root *os.Root, files []File) error {
	stale := map[string]bool{}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		stale[entry.Name()] = !strings.HasPrefix(entry.Name(), reserved)
	}
	for _, file := range files {
		if _, there := stale[file.Name]; !there {
			if err := root.Symlink(dataLink+"/"+file.Name, file.Name); err != nil {
				return err
			}
		}
		delete(stale, file.Name)
	}
	for name, remove := range stale {
		if !remove {
			continue
		}
		if err := root.Remove(name); err != nil {
			return err
		}
	}
	return nil
}
