package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// dataLink is the symbolic link that a volume's driver renames to replace all files
// at once.
const dataLink = "..data"

// digest is a hash of the contents of directories. The contents, which may be keys,
// are not kept.
type digest [sha256.Size]byte

// contents hashes the files in the directories. The error is fs.ErrNotExist if a
// directory does not exist or has no files yet.
func contents(directories []string) (digest, error) {
	hash := sha256.New()
	for _, directory := range directories {
		if err := addFiles(hash, directory); err != nil {
			return digest{}, err
		}
	}
	return digest(hash.Sum(nil)), nil
}

// addFiles adds the files of one directory. It resolves dataLink once, so that all
// files are from one set even if they are replaced meanwhile.
func addFiles(hash hash.Hash, directory string) error {
	set, err := filepath.EvalSymlinks(filepath.Join(directory, dataLink))
	if errors.Is(err, fs.ErrNotExist) {
		set, err = directory, nil
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(set)
	if err != nil {
		return err
	}
	found := false
	for _, entry := range entries {
		path := filepath.Join(set, entry.Name())
		info, err := os.Stat(path)
		switch {
		case strings.HasPrefix(entry.Name(), ".."):
		case err != nil:
			return err
		case info.Mode().IsRegular():
			found = true
			fmt.Fprintf(hash, "%q %d\n", path[len(set):], info.Size())
			if err := addFile(hash, path); err != nil {
				return err
			}
		}
	}
	if !found {
		return &fs.PathError{Op: "read", Path: directory, Err: fs.ErrNotExist}
	}
	return nil
}

// addFile clears its buffer: the file may be a key.
func addFile(hash hash.Hash, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	buffer := make([]byte, 8<<10)
	defer clear(buffer)
	// The struct hides the file's WriteTo, which would use a buffer of its own.
	_, err = io.CopyBuffer(hash, struct{ io.Reader }{file}, buffer)
	return err
}
