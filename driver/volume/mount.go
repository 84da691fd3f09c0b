package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
)

// A volume's tmpfs holds two sets of a few files of some KiB each, and a third set during
// a write. The tmpfs uses memory only for its contents. It grows for sets that need more, such
// as those with public roots, up to the limits.
const (
	tmpfsSize   = 1 << 20
	tmpfsInodes = 128

	largestSize   = 32 << 20
	largestInodes = 8 << 10
)

// makeRoom makes the tmpfs large enough for three sets with such files of the roots, and with
// the usual other files. What a container has put there does not count.
func (v *Volume) makeRoom(tree *tmpfs.Tree, files []payload.File) error {
	for _, file := range files {
		if len(file.Data) > payload.MaxFile {
			return fmt.Errorf("%s would have %d bytes, and a file in a volume has at most %d: use fewer roots", file.Name, len(file.Data), payload.MaxFile)
		}
	}
	bytes, inodes := payload.Size(files)
	v.extra.Store(extraMemory(bytes, inodes))
	bytes, inodes = 3*bytes+tmpfsSize/4, 3*inodes+tmpfsInodes/2
	switch {
	case bytes <= tmpfsSize && inodes <= tmpfsInodes:
		return nil
	case bytes > largestSize || inodes > largestInodes:
		return fmt.Errorf("three sets of the files need %d bytes and %d inodes, and a volume has at most %d and %d: use fewer roots, or fewer formats of them",
			bytes, inodes, largestSize, largestInodes)
	}
	return tree.Grow(bytes, inodes)
}

// extraMemory is how much more memory than usual two sets of such a size take, with what the
// kernel keeps for each file.
func extraMemory(bytes int64, inodes int) int64 {
	const usual, inode = 64 << 10, 1 << 10
	return max(0, 2*(bytes+int64(inodes)*inode)-usual)
}

// ExtraMemory estimates how much more memory than a usual volume a new one will take, in bytes,
// because of its roots.
func ExtraMemory(n *Node, s Spec) int64 { return newVolume(n, s).estimate() }

// ExtraMemory returns how much more memory the volume takes than a usual one, in bytes.
func (v *Volume) ExtraMemory() int64 { return v.extra.Load() }

func (v *Volume) estimate() int64 {
	if v.unfit != nil {
		return 0
	}
	return extraMemory(payload.TrustSize(v.issuer.LatestRoots().All(), v.attributes))
}

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
// The device number identifies the volume: a container can forge the record.
func (v *Volume) Open() (*os.File, error) {
	target, err := v.node.Targets.Open(v.Target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	if device, err := tmpfs.Device(target); err != nil || device != v.device {
		target.Close()
		if err == nil {
			err = fmt.Errorf("%w at %s", ErrGone, target.Name())
		}
		return nil, err
	}
	return target, nil
}

// Detach unmounts whatever volume of this driver is mounted at the path, even if it is
// mounted there several times. It succeeds if nothing is mounted.
func Detach(n *Node, path string) error {
	for {
		mounted, err := detach(n, path)
		if err != nil || !mounted {
			return err
		}
	}
}

// detach unmounts one mount of a volume at the path, if there is one.
func detach(n *Node, path string) (mounted bool, err error) {
	target, err := n.Targets.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer target.Close()
	data, err := tmpfs.Record(target)
	if errors.Is(err, tmpfs.ErrForeign) {
		// A container that has removed the record must not prevent the removal of its pod.
		if ours, _ := tmpfs.IsOf(target, n.DriverName); ours {
			return true, tmpfs.Detach(target)
		}
	}
	if err != nil || data == nil {
		return false, err
	}
	return true, tmpfs.Detach(target)
}
