package volume

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// ReplaceRoots writes the newest roots of the issuer, except for expired ones, into the
// mounted volume. changed tells whether the files changed, which makes programs reload. The
// certificate and the key stay, and so does the file of the roots beside them if it has the same
// roots in another order, or if all roots of the CA have expired. ReplaceRoots also writes key
// stores again that are damaged or have another password. It ignores a volume that is closed,
// unfit or not mounted.
//
// In a volume with trust only, ReplaceRoots also repairs what Adopt found: there is no renewal
// that would.
func (v *Volume) ReplaceRoots() (changed bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	changed, err = v.replaceRoots()
	if v.unwritten = err; err != nil {
		v.attempts++
	} else {
		v.attempts = 0
	}
	return changed, err
}

// replaceRoots requires the lock.
func (v *Volume) replaceRoots() (changed bool, err error) {
	if v.closed || v.unfit != nil {
		return false, nil
	}
	roots := v.issuer.LatestRoots().Current(time.Now())
	repair := v.renewFirst && v.attributes.TrustOnly
	if len(roots.Own) == 0 || v.roots.Same(roots) && !repair {
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
	files, same, err := v.filesWith(current, roots, repair)
	if err != nil {
		return false, err
	}
	defer wipe(files)
	if same {
		// A root that the CA has removed can stay as an additional one.
		own := trust.Same(v.roots.Own, roots.Own)
		v.roots = roots
		if !own && !v.attributes.TrustOnly {
			err = v.checkChain(current)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // the file names have changed: a renewal is due
		}
		return false, err
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
	if err := v.makeRoom(tree, files); err != nil {
		return false, err
	}
	err = payload.Replace(root, files, a)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the file names have changed: a renewal is due
	}
	if err != nil {
		return false, err
	}
	if v.roots = roots; !v.attributes.TrustOnly {
		return true, v.checkChain(root)
	}
	if repair {
		err = writeRecord(tree, v.record())
		v.renewFirst = err != nil
	}
	return true, err
}

// filesWith returns the files that change with the roots, and whether the volume has them
// already, unless it is to be repaired. If it has key stores, these are all files: after another
// process has changed the password's file, all key stores must have the same password again.
// With trust only, the order of the roots counts, too: no renewal puts them in order.
func (v *Volume) filesWith(root *os.Root, roots issuer.Roots, repair bool) (files []payload.File, same bool, err error) {
	if v.attributes.Files.HasKeyStore() || v.attributes.TrustOnly {
		if files, err := v.encodeMounted(root, roots); err == nil {
			return files, !repair && payload.Has(root, files), nil
		}
		// The password is not known yet, or a renewal repairs the files.
	}
	if !repair {
		if same, err = payload.HasTrust(root, v.attributes, roots); err != nil || same {
			return nil, same, err
		}
	}
	files, err = payload.EncodeTrust(roots, v.attributes, payload.Password{})
	return files, false, err
}
