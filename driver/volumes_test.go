package driver

import (
	"testing"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/panics"
)

// A panic about one volume stops neither the start nor the replacement of the roots in
// the other volumes.
func TestPanicAboutOneVolume(t *testing.T) {
	d, _ := measured(t)
	before := panics.Total()
	if d.replaceRoots(t.Context(), &volume.Volume{}) { // it has no issuer
		t.Error("the roots of a volume without an issuer changed")
	}
	if err := d.find(t.Context(), "mount"); err == nil { // no directory is open
		t.Error("found without a directory")
	}
	if n := panics.Total() - before; n != 2 {
		t.Errorf("%d panics recovered, want 2", n)
	}
}
