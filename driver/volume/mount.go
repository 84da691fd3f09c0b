package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// A volume's tmpfs holds two sets of a few files of some KiB each, and a third set during
// a write. The tmpfs uses memory only for its contents.
const (
	tmpfsSize   = 1 << 20
	tmpfsInodes = 128
)

// IsMounted tells whether a volume is mounted at the path.
func IsMounted(n *Node, path string) (bool, error) {
	target, err := n.Targets.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer target.Close()
	data, err := tmpfs.Record(target)
	return data != nil, err
}

// Open opens the volume's target. The error is ErrGone if the volume is not mounted there.
func (v *Volume) Open() (*os.File, error) {
	target, err := v.node.Targets.Open(v.Target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	data, err := tmpfs.Record(target)
	if errors.Is(err, tmpfs.ErrForeign) || err == nil && (data == nil || isOther(data, v.VolumeID)) {
		err = fmt.Errorf("%w at %s", ErrGone, target.Name())
	}
	if err != nil {
		target.Close()
		return nil, err
	}
	return target, nil
}

// Detach unmounts the volume from the target path, even if it is mounted there several
// times. It succeeds if nothing is mounted.
func Detach(n *Node, id, path string) error {
	for {
		target, err := n.Targets.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := tmpfs.Record(target)
		switch {
		case err == nil && data != nil && isOther(data, id):
			err = fmt.Errorf("%w: %s", ErrConflict, path)
		case err == nil && data != nil:
			err = tmpfs.Detach(target)
		}
		target.Close()
		if err != nil || data == nil {
			return err
		}
	}
}
