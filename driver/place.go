package driver

import (
	"os"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// A volume's tmpfs holds two sets of a few files of some KiB each, and a third
// while it is written; memory is used for what is in it only.
const (
	tmpfsSize   = 1 << 20
	tmpfsInodes = 128
)

// place is an empty tmpfs that nobody sees yet, and the directory that it is to
// be attached at.
type place struct {
	targets *tmpfs.Directory
	path    string
	tree    *tmpfs.Tree
	target  *os.File
	made    bool // the directory was not there before
	err     error
}

// makePlace fails with the place's err.
func (d *Driver) makePlace(path string) *place {
	p := &place{targets: d.targets, path: path}
	p.tree, p.err = tmpfs.Create(tmpfs.Options{Source: d.config.Name, Size: tmpfsSize, Inodes: tmpfsInodes})
	if p.err == nil {
		p.target, p.made, p.err = d.targets.Make(path)
	}
	return p
}

// close lets go of the place. What has been attached stays.
func (p *place) close() {
	if p.tree != nil {
		p.tree.Close()
	}
	if p.target != nil {
		p.target.Close()
	}
}

// abandon leaves nothing of the place.
func (p *place) abandon() {
	p.close()
	if p.made {
		_ = p.targets.Remove(p.path)
	}
}
