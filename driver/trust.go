package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/trust"
)

// maxTrustFile is the largest size of a trustFile, in bytes. Roots have about a KiB.
const maxTrustFile = 1 << 20

// trustFile holds the roots by which the issuers' servers are verified, for the next
// process: the CA may have removed the root that the configuration names. It lies beside
// the CSI socket, in a directory that only root can write to. A mount would be the wrong
// place: a container with CAP_SYS_ADMIN can change what its mounts hold.
type trustFile struct {
	path    string
	changed chan struct{} // the roots may have changed
	saved   []byte        // the contents, as far as known
}

// trustContents are the contents of a trustFile, in JSON.
type trustContents struct {
	// Issuers are by name.
	Issuers map[string]trust.State `json:"issuers"`
}

func newTrustFile(socket string) *trustFile {
	return &trustFile{path: filepath.Join(filepath.Dir(socket), "trusted-roots.json"), changed: make(chan struct{}, 1)}
}

func (f *trustFile) temporary() string { return f.path + ".new" }

// restore makes the issuers trust what an earlier process saved. Without a readable file,
// they trust the configured roots.
func (f *trustFile) restore(ctx context.Context, issuers map[string]*issuerState) {
	logger := klog.FromContext(ctx)
	os.Remove(f.temporary()) // of a process that was killed
	contents, err := f.read()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		logger.Error(err, "Ignoring the saved roots; CAs are verified by the configured roots", "file", f.path)
		return
	}
	for name, state := range contents.Issuers {
		i, known := issuers[name]
		if !known {
			continue
		}
		if err := i.Trust().Restore(state); err != nil {
			logger.Info("Ignoring the saved roots of an issuer; its CA is verified by the configured roots",
				"issuer", name, "file", f.path, "reason", err.Error())
		}
	}
}

func (f *trustFile) read() (contents trustContents, err error) {
	// O_NONBLOCK: a FIFO does not block the start.
	file, err := os.OpenFile(f.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return contents, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return contents, errors.Join(err, errors.New("it is not a regular file"))
	}
	data, err := io.ReadAll(io.LimitReader(file, maxTrustFile+1))
	if err != nil {
		return contents, err
	}
	if len(data) > maxTrustFile {
		return contents, fmt.Errorf("it is larger than %d bytes", maxTrustFile)
	}
	if err := json.Unmarshal(data, &contents); err != nil {
		return contents, err
	}
	f.saved = data
	return contents, nil
}

// mayHaveChanged makes keep save the roots.
func (f *trustFile) mayHaveChanged() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// keep saves the roots when they change, until ctx ends. If that fails, it logs the error
// once, and tries again at the next chance: everything else works without the file.
func (f *trustFile) keep(ctx context.Context, issuers map[string]*issuerState) {
	failing := false
	for {
		select {
		case <-f.changed:
		case <-ctx.Done():
			return
		}
		err := f.save(ctx, issuers)
		if err != nil && !failing {
			klog.FromContext(ctx).Error(err, "Cannot save the trusted roots; the next process verifies CAs by the configured roots", "file", f.path)
		}
		failing = err != nil
	}
}

func (f *trustFile) save(ctx context.Context, issuers map[string]*issuerState) (err error) {
	defer panics.Recover(ctx, "save the trusted roots", &err)
	contents := trustContents{Issuers: map[string]trust.State{}}
	for name, i := range issuers {
		if state := i.Trust().State(); len(state.Roots) > 0 {
			contents.Issuers[name] = state
		}
	}
	data, err := json.Marshal(contents)
	switch {
	case err != nil:
		return err
	case bytes.Equal(data, f.saved) && f.exists() || len(contents.Issuers) == 0 && f.saved == nil:
		return nil
	case len(data) > maxTrustFile:
		return fmt.Errorf("the roots need %d bytes, more than %d", len(data), maxTrustFile)
	}
	if err := f.write(data); err != nil {
		return err
	}
	f.saved = data
	return nil
}

// exists is false if somebody has removed the file, such as with its directory.
func (f *trustFile) exists() bool {
	_, err := os.Lstat(f.path)
	return err == nil
}

// write replaces the file, so that a reader finds either the old or the new contents,
// also after a power failure.
func (f *trustFile) write(data []byte) error {
	// restore may have failed to remove it.
	if err := os.Remove(f.temporary()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(f.temporary(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(f.temporary(), f.path)
	}
	if err != nil {
		os.Remove(f.temporary())
		return err
	}
	directory, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}
