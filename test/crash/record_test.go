package crash

import (
	"encoding/json"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/test/logs"
	"github.com/flexstack/step-csi/test/node"
)

// A plugin that was killed after it wrote the files of a renewal and before it wrote
// the record goes by the mounted certificate: in the volume's health, and for
// revocation.
func TestKilledBeforeTheRecord(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	n := newVictim(t, ca)
	p := newPod("web-0").With("revoke-on-delete", "true").With("duration", "1h")
	n.startIntercepted(nil)
	n.Publish(p)
	first, err := readAll(n.Target(p), usual)
	node.Must(t, err)
	n.calls.set(func(c call) verdict { return verdict{kill: c.name == "setxattr"} })
	p = p.With("duration", "2h")
	_ = n.TryPublish(p)
	n.ended()
	leaf, err := readAll(n.Target(p), usual)
	node.Must(t, err)
	if leaf.Equal(first) {
		t.Fatal("it was killed before the files")
	}
	ca.Stop()
	n.start()
	n.Publish(p) // the record says one hour: a renewal is due
	node.Eventually(t, time.Minute, "a failed renewal of the certificate that is mounted", func() bool {
		trouble, err := n.Health(p)
		return err == nil && len(trouble) == 1 &&
			strings.Contains(trouble[0].GetMessage(), "valid until "+leaf.NotAfter.UTC().Format(time.RFC3339))
	})
	n.Unpublish(p)
	// The CA is down, so the plugin logs the revocation when it stops.
	n.stop()
	node.Eventually(t, time.Minute, "the revocation of the certificate that was mounted", func() bool {
		return n.Logs.Has(logs.RevokeByHand + leaf.SerialNumber.String())
	})
}

// changeRecord writes another record into the pod's volume.
func (n *victim) changeRecord(p node.Pod, change func(old map[string]any) any) {
	n.T.Helper()
	target, err := os.Open(n.Target(p))
	node.Must(n.T, err)
	defer target.Close()
	data, err := tmpfs.Record(target)
	node.Must(n.T, err)
	var old map[string]any
	node.Must(n.T, json.Unmarshal(data, &old))
	changed := change(old)
	if raw, ok := changed.(string); ok {
		data = []byte(raw)
	} else {
		data, err = json.Marshal(changed)
		node.Must(n.T, err)
	}
	tree, err := tmpfs.Clone(target)
	node.Must(n.T, err)
	defer tree.Close()
	node.Must(n.T, tree.SetRecord(data))
}

func without(keys ...string) func(map[string]any) any {
	return func(r map[string]any) any {
		for _, key := range keys {
			delete(r, key)
		}
		return r
	}
}

func with(key string, value any) func(map[string]any) any {
	return func(r map[string]any) any { r[key] = value; return r }
}

// A pod keeps its volume if the record is damaged or of another version. The plugin
// adopts what it understands, and the kubelet's next call repairs the rest.
func TestRecordsOfOtherVersionsAndDamagedOnes(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	for name, test := range map[string]struct {
		change   func(old map[string]any) any
		takeOver bool // without the kubelet
	}{
		"more fields":       {with("future", map[string]any{"a": 1}), true},
		"no serial":         {without("serial"), true},
		"no times":          {without("issued", "notAfter", "serial"), true},
		"no attributes":     {without("attributes"), true},
		"no pod":            {without("pod"), true},
		"no volume":         {without("volumeID"), false},
		"no target":         {without("target"), false},
		"a field's type":    {with("notAfter", 5), false},
		"half":              {func(map[string]any) any { return `{"volumeID":` }, false},
		"not an object":     {func(map[string]any) any { return `[]` }, false},
		"an empty object":   {func(map[string]any) any { return `{}` }, false},
		"nothing":           {func(map[string]any) any { return "" }, false},
		"as long as can be": {func(r map[string]any) any { b, _ := json.Marshal(r); return string(b) + strings.Repeat(" ", 15<<10) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newVictim(t, ca)
			p, goes := newPod("web-0"), newPod("web-1")
			n.start()
			for _, p := range []node.Pod{p, goes} {
				n.Publish(p)
				n.changeRecord(p, test.change)
			}
			n.kill()
			n.start()
			if _, err := readAll(n.Target(p), usual); err != nil {
				t.Error(err)
			}
			if trouble, err := n.Health(p); err != nil || unread(trouble) == test.takeOver {
				t.Errorf("health: %v, %v", trouble, err)
			}
			if !test.takeOver {
				node.Eventually(t, time.Minute, "both are reported", func() bool { return n.Logs.Count(logs.CannotAdopt) == 2 })
			}
			n.Unpublish(goes) // whatever it says
			n.ExpectGone(goes)
			n.Publish(p)
			node.Eventually(t, time.Minute, "a whole record", func() bool { return n.recordIsWhole(p) })
			n.kill()
			n.start()
			n.expectTracked(p)
			if _, err := readAll(n.Target(p), usual); err != nil {
				t.Error(err)
			}
			n.Unpublish(p)
			n.ExpectGone(p)
			n.stop()
		})
	}
}

// unread tells whether this is the health of a volume that could not be read.
func unread(trouble []*csi.VolumeHealth_VolumeHealthEntry) bool {
	return len(trouble) == 1 && strings.Contains(trouble[0].GetMessage(), "is not renewed until the kubelet publishes the volume again")
}

// recordIsWhole tells whether the record identifies the volume, and describes the
// mounted certificate or none.
func (n *victim) recordIsWhole(p node.Pod) bool {
	n.T.Helper()
	target, err := os.Open(n.Target(p))
	node.Must(n.T, err)
	defer target.Close()
	data, err := tmpfs.Record(target)
	node.Must(n.T, err)
	r, err := volume.ParseRecord(data)
	if err != nil {
		return false
	}
	root, err := tmpfs.Root(target)
	node.Must(n.T, err)
	defer root.Close()
	contents, err := volume.Check(root, attributes.Files(usual))
	node.Must(n.T, err)
	return r.VolumeID == p.VolumeID() && r.Pod.Name == p.Name && n.KubeletDir+"/"+r.Target == n.Target(p) && maps.Equal(r.Attributes, p.Attributes) &&
		(r.Serial == "" || r.Fits(contents) == nil)
}

// A volume that is mounted on top of itself is taken over once.
func TestTakenOverOnce(t *testing.T) {
	t.Parallel()
	n := newVictim(t, startCA(t))
	p := newPod("web-0")
	n.start()
	n.Publish(p)
	n.kill()
	node.Must(t, syscall.Mount(n.Target(p), n.Target(p), "", syscall.MS_BIND, ""))
	n.start()
	node.Eventually(t, time.Minute, "the volume is taken over once", func() bool { return n.Logs.Has(logs.Found + ` count=1`) })
	n.Unpublish(p)
	n.ExpectGone(p)
	n.stop()
}
