package payload

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// A container with CAP_SYS_ADMIN can remount its volume writable and put anything in the
// place of the files. The limits below are far above what this package writes, and keep
// such a volume from blocking the plugin or using up its memory.
const (
	// MaxFile is the largest file to read and to write, in bytes.
	MaxFile = 1 << 20
	// maxKey is the largest private key to read. RSA-4096 takes 3.3 KB. Parsing a larger
	// RSA key takes long.
	maxKey = 8 << 10
	// maxNames is the largest number of names in a directory. A new volume holds fewer.
	maxNames = 128
)

// ErrForeign means that the volume contains something that this package did not write.
var ErrForeign = errors.New("the volume was changed by another process")

// ReadFile reads a regular file of at most MaxFile bytes.
func ReadFile(root *os.Root, name string) ([]byte, error) { return readFile(root, name, MaxFile) }

func readFile(root *os.Root, name string, limit int64) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO, or a file with a lease (F_SETLEASE in fcntl(2)), must
	// not block.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrForeign, name)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", ErrForeign, name, limit)
	}
	data := make([]byte, info.Size()) // a growing buffer would leave copies of the key
	n, err := io.ReadFull(file, data)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // the file was truncated
	}
	return data[:n], err
}

// OpenSet opens the set of files that is in use.
func OpenSet(root *os.Root) (*os.Root, error) { return OpenDirectory(root, DataLink) }

// OpenDirectory opens a directory. Unlike root.OpenRoot, it does not block on a FIFO.
func OpenDirectory(root *os.Root, name string) (*os.Root, error) {
	directory, err := root.OpenFile(name, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer directory.Close()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", directory.Fd()))
}

// list returns the names in the directory, at most so many.
func list(root *os.Root, directory string, most int) ([]string, error) {
	file, err := root.OpenFile(directory, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	names, err := file.Readdirnames(most + 1)
	if errors.Is(err, io.EOF) {
		return nil, nil // the directory is empty
	}
	if err == nil && len(names) > most {
		err = fmt.Errorf("%w: %s contains more than %d names", ErrForeign, directory, most)
	}
	return names, err
}

// removeSet removes a directory of files, or anything else with that name. A set may have
// directories of files, and no directories in these.
func removeSet(root *os.Root, name string) error {
	return removeDirectory(root, name, maxNames, func(name string) error {
		return removeDirectory(root, name, maxDirectory, func(name string) error { return remove(root, name) })
	})
}

// removeDirectory removes what has that name. If it is a directory with at most so many names,
// removeDirectory first removes them with the function.
func removeDirectory(root *os.Root, name string, most int, removeName func(string) error) error {
	if err := remove(root, name); !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	names, err := list(root, name, most)
	if err != nil {
		return err
	}
	for _, file := range names {
		if err := removeName(path.Join(name, file)); err != nil {
			return err
		}
	}
	return remove(root, name)
}

// remove removes a file or an empty directory, if it exists.
func remove(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
