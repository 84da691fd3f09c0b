package volume_test

import (
	"bytes"
	"maps"
	"os"
	"strings"
	"testing"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/volume"
)

// formatted asks for every format.
var formatted = map[string]string{
	"chain": "leaf", "owner-uid": "999", "bundle-file": "bundle.pem", "certificate-der-file": "tls.crt.der", "privatekey-der-file": "tls.key.der",
}

// checkFormats runs volume.Check for all files of the fixture's volume.
func (f *fixture) checkFormats() *volume.Contents {
	f.t.Helper()
	a, err := attributes.Parse(f.spec.Attributes, f.spec.Pod, f.spec.MountGroup, f.node.Attributes)
	must(f.t, err)
	root, err := os.OpenRoot(f.path)
	must(f.t, err)
	defer root.Close()
	contents, err := volume.Check(root, a.Files)
	must(f.t, err)
	return contents
}

// adopt adopts the volume, and tells whether its files are damaged.
func (f *fixture) adopt() (v *volume.Volume, damaged bool) {
	f.t.Helper()
	var log bytes.Buffer
	ctx := klog.NewContext(f.t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&log))))
	v, err := volume.Adopt(ctx, f.node, f.spec)
	must(f.t, err)
	return v, strings.Contains(log.String(), "A mounted volume is damaged")
}

// All formats are replaced together, at a renewal and after a restart. With chain: leaf, the
// volume still knows its intermediates.
func TestFormatsOfOneCredential(t *testing.T) {
	f := newFixture(t)
	f.spec.Attributes = maps.Clone(formatted)
	v := f.create()
	first := f.checkFormats()
	if len(first.Intermediates) != 1 {
		t.Errorf("%d intermediates", len(first.Intermediates))
	}
	must(t, v.Renew(t.Context()))
	second := f.checkFormats()
	if second.Leaf.Equal(first.Leaf) || len(second.Intermediates) != 1 {
		t.Errorf("%d intermediates after the renewal", len(second.Intermediates))
	}
	f.addRoot()
	if changed, err := v.ReplaceRoots(); err != nil || !changed {
		t.Errorf("ReplaceRoots: changed %v, error %v", changed, err)
	}
	if third := f.checkFormats(); !third.Leaf.Equal(second.Leaf) || len(third.Intermediates) != 1 || len(third.Roots) != 2 {
		t.Errorf("%d intermediates and %d roots after a change of the roots", len(third.Intermediates), len(third.Roots))
	}
	v.Stop()
	if _, damaged := f.adopt(); damaged {
		t.Error("an intact volume counts as damaged after a restart")
	}
}

// A file that belongs to another credential is damage, and so is a missing one.
func TestDamagedFormats(t *testing.T) {
	for name, damage := range map[string]func(*os.Root) error{
		"bundle.pem":  func(root *os.Root) error { return root.WriteFile("..data/bundle.pem", []byte("-----BEGIN"), 0o600) },
		"tls.crt.der": func(root *os.Root) error { return root.WriteFile("..data/tls.crt.der", []byte{0x30}, 0o600) },
		"tls.key.der": func(root *os.Root) error { return root.Remove("..data/tls.key.der") },
		"a large key": func(root *os.Root) error {
			return root.WriteFile("..data/tls.key.der", []byte(strings.Repeat("0", 100<<10)), 0o600)
		},
	} {
		f := newFixture(t)
		f.spec.Attributes = maps.Clone(formatted)
		v := f.create()
		v.Stop()
		f.damage(damage)
		adopted, damaged := f.adopt()
		if !damaged {
			t.Errorf("%s: the damage is not found", name)
		}
		must(t, adopted.Renew(t.Context()))
		f.checkFormats()
	}
}
