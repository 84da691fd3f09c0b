package volume

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
)

// ReplaceRoots writes the newest roots of the issuer, except for expired ones, into the
// mounted volume. changed tells whether the files changed, which makes programs reload. The
// certificate and the key stay, and so does the file of the roots if it has the same roots
// in another order, or if all roots of the CA have expired. ReplaceRoots also writes key
// stores again that are damaged or have another password. It ignores a volume that is closed,
// unfit or not mounted.
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
	files, same, err := v.filesWith(current, roots)
	if err != nil {
		return false, err
	}
	defer wipe(files)
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
	a := v.attributes
	if _, err := root.Lstat(payload.DataLink + "/" + a.Files.KeyStorePassword); v.IsFound() && errors.Is(err, fs.ErrNotExist) {
		a.Files.KeyStorePassword = "" // the pod has given the password
	}
	err = payload.Replace(root, files, a)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the file names have changed: a renewal is due
	}
	if err != nil {
		return false, err
	}
	v.roots = roots
	return true, v.checkChain(root)
}

// filesWith returns the files that change with the roots, and whether the volume has them
// already. If it has key stores, these are all files: after another process has changed the
// password's file, all key stores must have the same password again.
func (v *Volume) filesWith(root *os.Root, roots issuer.Roots) (files []payload.File, same bool, err error) {
	if v.attributes.Files.HasKeyStore() {
		if files, err := v.encodeMounted(root, roots); err == nil {
			return files, payload.Has(root, files), nil
		}
		// The password is not known yet, or a renewal repairs the files.
	}
	if same, err = payload.HasRoots(root, v.attributes.Files.CA, roots); err != nil || same {
		return nil, same, err
	}
	files, err = payload.EncodeTrust(roots, v.attributes, payload.Password{})
	return files, false, err
}
