package driver

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/trust"
)

// followRoots keeps the roots in all volumes of the issuer those that the
// authority has, without issuing anything.
func (d *Driver) followRoots(ctx context.Context, name string, a authority) {
	logger := klog.FromContext(ctx).WithValues("issuer", name)
	ctx = klog.NewContext(ctx, logger)
	a.issuer.FollowRoots(ctx, a.rootsRefresh, func(roots issuer.Roots, err error) {
		d.metrics.refreshed(name, roots, err)
		if err != nil {
			return // those that were known stay
		}
		rewritten := 0
		for _, v := range d.volumesOf(name) {
			done, err := d.rewriteRoots(ctx, v, roots, a.issuer.Trust().Learnt())
			if err != nil {
				logger.Error(err, "The roots in a volume are not rewritten", v.logValues()...)
			}
			if done {
				rewritten++
			}
		}
		if rewritten > 0 {
			logger.Info("Rewrote the roots in volumes", "count", rewritten)
		}
	})
}

// volumesOf are the mounted volumes whose certificates come from the issuer.
func (d *Driver) volumesOf(name string) (all []*volume) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.volumes {
		if v.attributes.Issuer == name {
			all = append(all, v)
		}
	}
	return all
}

// rewriteRoots makes the volume's file of roots a new one, if it has others, and
// tells whether it was. The certificate and the key stay as they are.
func (d *Driver) rewriteRoots(ctx context.Context, v *volume, roots issuer.Roots, learnt trust.Learnt) (done bool, err error) {
	release, err := d.locks.acquire(ctx, v.record.VolumeID)
	if err != nil {
		return false, err
	}
	defer release()
	if d.tracked(v.record.VolumeID) != v {
		return false, nil // it has gone, or is another one
	}
	v.writing.Lock()
	defer v.writing.Unlock()
	target, err := d.openMounted(v.record.VolumeID, v.record.Target)
	if errors.Is(err, errGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer target.Close()
	file := payload.File{Name: v.attributes.CAFile, Data: payload.EncodeRoots(roots)}
	if same, err := hasRoots(target, file, learnt); same || err != nil {
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
	err = payload.Replace(root, file, fileNames(v.attributes), v.access())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // its files are to have other names: it is about to be renewed
	}
	if err != nil {
		return false, err
	}
	return true, writeLearnt(tree, learnt)
}

// hasRoots tells whether the mounted volume has the file, and what was learnt.
func hasRoots(target *os.File, file payload.File, learnt trust.Learnt) (bool, error) {
	root, err := tmpfs.Root(target)
	if err != nil {
		return false, err
	}
	defer root.Close()
	same, err := payload.Has(root, file)
	if !same || err != nil {
		return false, err
	}
	known, err := readLearnt(target)
	return err == nil && known.Anchor == learnt.Anchor && known.Since.Equal(learnt.Since), nil
}

func fileNames(a attributes.Attributes) []string {
	return []string{a.CertificateFile, a.PrivateKeyFile, a.CAFile}
}

// writeLearnt leaves what the authority is verified by for the next process: the
// mount is the only state. More than fits is forgotten: the configuration's roots
// are then what the next process has.
func writeLearnt(tree *tmpfs.Tree, learnt trust.Learnt) error {
	data, err := json.Marshal(learnt)
	if err != nil || len(data) > tmpfs.MaxRecord {
		return err
	}
	return tree.SetTrust(data)
}

func readLearnt(target *os.File) (learnt trust.Learnt, err error) {
	data, err := tmpfs.Trust(target)
	if err != nil || data == nil {
		return learnt, err
	}
	return learnt, json.Unmarshal(data, &learnt)
}
