// Package payload writes a set of files so that a reader sees either all old files or
// all new files. It uses the kubelet's layout for Secrets and ConfigMaps: each set of
// files is in its own directory, one rename replaces the symbolic link `..data` to that
// directory, and each visible name is a symbolic link through `..data`. Programs that
// watch for this rename keep working. See
// https://pkg.go.dev/k8s.io/kubernetes/pkg/volume/util#AtomicWriter.
package payload

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/flexstack/step-csi/driver/attributes"
)

const (
	// DataLink is the symbolic link to the set of files that is in use.
	DataLink = "..data"
	newLink  = "..data_tmp"
	// Reserved is the prefix of names that users cannot choose.
	Reserved = ".."
)

// File is one file of a set.
type File struct {
	// Name is the file's name, or that of a directory and that of the file in it, with a slash
	// between them.
	Name string
	Data []byte
	// Secret means that the file contains the private key, or the password of key stores.
	Secret bool
}

// Access defines who may read the files.
type Access struct {
	Mode, SecretMode fs.FileMode
	// Owner is the user ID of the owner.
	Owner int
	// Group is the group of the files, or nil for root's.
	Group *int
}

// AccessOf returns the access in the attributes.
func AccessOf(a attributes.Attributes) Access {
	return Access{a.Mode, a.PrivateKeyMode, a.Owner, a.Group}
}

// ErrCleanUp means that the new set is in use, but names of the previous set are left.
var ErrCleanUp = errors.New("remove the previous file names")

// Write replaces the set of files in root. The previous set stays until the next Write,
// for readers that are about to open it. Write removes older sets, and the leftovers of
// an interrupted Write. After an error, the previous set is in use, unless the error is
// ErrCleanUp.
func Write(root *os.Root, files []File, access Access) error {
	names, err := list(root, ".", maxNames)
	if err != nil {
		return err
	}
	current, err := currentSet(root, names)
	if err != nil {
		return err
	}
	if err := removeSetsBut(root, names, current); err != nil {
		return fmt.Errorf("remove old files: %w", err)
	}
	set := setName(time.Now())
	if err := writeSet(root, set, files, access); err != nil {
		return errors.Join(err, removeSet(root, set))
	}
	// At every moment, all old names or all new names exist and point to files. New names
	// point to nothing until the swap.
	before, after := visible(names), fileNames(files)
	if err = link(root, missing(after, before)); err == nil {
		err = swap(root, set)
	}
	if err != nil {
		return errors.Join(err, unlink(root, missing(after, before)), removeSet(root, set))
	}
	announce(root, current, before)
	if err := unlink(root, missing(before, after)); err != nil {
		return fmt.Errorf("%w: %w", ErrCleanUp, err)
	}
	return nil
}

// Replace replaces some files of the set of a volume with the attributes. The other files keep
// their contents.
func Replace(root *os.Root, files []File, a attributes.Attributes) error {
	var all []File
	for _, f := range formats {
		name := f.name(a)
		if name == "" {
			continue
		}
		replaced := slices.DeleteFunc(slices.Clone(files), func(file File) bool { return file.visibleName() != name })
		if len(replaced) > 0 {
			all = append(all, replaced...)
			continue
		}
		data, err := ReadFile(root, DataLink+"/"+name)
		if err != nil {
			return err
		}
		defer clear(data) // it may contain the key
		all = append(all, File{name, data, f.secret})
	}
	return Write(root, all, AccessOf(a))
}

// announce touches the files of the previous set, for programs that watch a file itself
// and so watch the previous set. They see a modification and a changed attribute, and
// open the name again. Without announce, they would see no event until the next Write
// removes that set. The new set is already in use, so errors do not matter.
func announce(root *os.Root, set string, names []string) {
	if set == "" {
		return
	}
	for _, name := range names {
		name, now := path.Join(set, name), time.Now()
		_ = root.Chtimes(name, time.Time{}, now) // IN_MODIFY
		_ = root.Chtimes(name, now, now)         // IN_ATTRIB
	}
}

// currentSet returns the name of the set in use, or an empty string at first.
func currentSet(root *os.Root, names []string) (string, error) {
	if !slices.Contains(names, DataLink) {
		return "", nil
	}
	return root.Readlink(DataLink)
}

func removeSetsBut(root *os.Root, names []string, current string) error {
	for _, name := range names {
		if !strings.HasPrefix(name, Reserved) || name == DataLink || name == current {
			continue
		}
		if err := removeSet(root, name); err != nil {
			return err
		}
	}
	return nil
}

// setName returns a unique name. The names sort by time, like the kubelet's.
func setName(now time.Time) string {
	return Reserved + now.UTC().Format("2006_01_02_15_04_05.") + rand.Text()[:10]
}

func writeSet(root *os.Root, name string, files []File, access Access) error {
	if err := makeDirectory(root, name); err != nil {
		return err
	}
	set, err := OpenDirectory(root, name)
	if err != nil {
		return err
	}
	defer set.Close()
	for _, file := range files {
		if err := writeFile(set, file, access); err != nil {
			return err
		}
	}
	return nil
}

// makeDirectory makes a directory, unless it exists.
func makeDirectory(root *os.Root, name string) error {
	err := root.Mkdir(name, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return root.Chmod(name, 0o755) // the process's umask must not restrict the mode
}

func writeFile(set *os.Root, file File, access Access) error {
	if directory := file.visibleName(); directory != file.Name {
		if err := makeDirectory(set, directory); err != nil {
			return err
		}
	}
	f, err := set.OpenFile(file.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	mode := access.Mode
	if file.Secret {
		mode = access.SecretMode
	}
	if err := f.Chmod(mode); err != nil { // before Chown: the owner may
		return err
	}
	if access.Owner != 0 || access.Group != nil {
		if err := f.Chown(access.Owner, groupOf(access)); err != nil {
			return err
		}
	}
	_, err = f.Write(file.Data)
	return err
}

func groupOf(a Access) int {
	if a.Group != nil {
		return *a.Group
	}
	return -1 // as it is
}

func swap(root *os.Root, set string) error {
	err := root.Symlink(set, newLink)
	if err == nil {
		err = root.Rename(newLink, DataLink)
	}
	if err != nil {
		return fmt.Errorf("swap %s: %w", DataLink, err)
	}
	return nil
}

// visible returns the names that readers use.
func visible(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return strings.HasPrefix(name, Reserved) })
}

func fileNames(files []File) []string {
	var names []string
	for _, file := range files {
		names = append(names, file.visibleName())
	}
	return slices.Compact(visible(names))
}

// visibleName returns the name in the volume: that of the file, or that of its directory.
func (f File) visibleName() string {
	name, _, _ := strings.Cut(f.Name, "/")
	return name
}

// missing returns the names that are not among others.
func missing(names, others []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(others, name) })
}

func link(root *os.Root, names []string) error {
	for _, name := range names {
		if err := root.Symlink(DataLink+"/"+name, name); err != nil {
			return err
		}
	}
	return nil
}

// unlink removes the names that exist.
func unlink(root *os.Root, names []string) error {
	for _, name := range names {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
