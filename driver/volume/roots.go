package volume

import (
	"errors"
	"io/fs"
	"time"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
)

// ReplaceRoots writes the newest roots of the issuer, except for expired ones, into the
// mounted volume. changed tells whether the files changed, which makes programs reload. The
// certificate and the key stay, and so does the file of the roots if it has the same roots
// in another order, or if all roots of the CA have expired. ReplaceRoots ignores a volume
// that is closed, unfit or not mounted.
func (v *Volume) ReplaceRoots() (changed bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || v.unfit != nil {
		return false, nil
	}
	roots := v.issuer.LatestRoots().Current(time.Now())
	if len(roots.Own) == 0 || v.roots.Same(roots) {
		return false, nil
	}
	target, err := v.Open()
	if errors.Is(err, ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer target.Close()
	current, err := tmpfs.Root(target)
	if err != nil {
		return false, err
	}
	defer current.Close()
	same, err := payload.HasRoots(current, v.attributes.Files.CA, roots)
	if err != nil {
		return false, err
	}
	if same {
		v.roots = roots
		return false, nil
	}
	tree, err := tmpfs.Clone(target)
	if err != nil {
		return false, err
	}
	defer tree.Close()
	root, err := tree.Root()
	if err != nil {
		return false, err
	}
	defer root.Close()
	files, err := payload.EncodeTrust(roots, v.attributes)
	if err != nil {
		return false, err
	}
	err = payload.Replace(root, files, v.attributes)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the file names have changed: a renewal is due
	}
	if err != nil {
		return false, err
	}
	v.roots = roots
	return true, v.checkChain(root)
}
