package crash

import (
	"encoding/json"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flexstack/step-csi/driver/tmpfs"
)

// Killed between the files of a renewal and the record of it, the plugin goes by
// the certificate that is mounted: for what it says of it, and for what it revokes.
func TestKilledBeforeTheRecord(t *testing.T) {
	ca := startCA(t)
	n := newNode(t, ca)
	p := newPod("web-0").with("revoke-on-delete", "true").with("duration", "1h")
	n.startIntercepted(nil)
	must(t, n.publish(p))
	first, err := readAll(n.target(p), usual)
	must(t, err)
	n.calls.set(func(c call) verdict { return verdict{kill: c.name == "setxattr"} })
	p = p.with("duration", "2h")
	_ = n.publish(p)
	n.ended()
	leaf, err := readAll(n.target(p), usual)
	must(t, err)
	if leaf.Equal(first) {
		t.Fatal("it was killed before the files")
	}
	ca.Stop()
	n.start()
	must(t, n.publish(p)) // the record says one hour: a renewal is due
	eventually(t, 30*time.Second, "a failed renewal of the certificate that is mounted", func() bool {
		trouble, err := n.health(p)
		return err == nil && len(trouble) == 1 &&
			strings.Contains(trouble[0].GetMessage(), "valid until "+leaf.NotAfter.UTC().Format(time.RFC3339))
	})
	must(t, n.unpublish(p))
	// The CA is away, so it is said in the end.
	n.stop()
	eventually(t, 30*time.Second, "the revocation of the certificate that was mounted", func() bool {
		return strings.Contains(n.logs.String(), "step ca revoke "+leaf.SerialNumber.String())
	})
}

// changeRecord writes another record into the pod's volume.
func (n *node) changeRecord(p pod, change func(old map[string]any) any) {
	n.t.Helper()
	target, err := os.Open(n.target(p))
	must(n.t, err)
	defer target.Close()
	data, err := tmpfs.Record(target)
	must(n.t, err)
	var old map[string]any
	must(n.t, json.Unmarshal(data, &old))
	changed := change(old)
	if raw, ok := changed.(string); ok {
		data = []byte(raw)
	} else {
		data, err = json.Marshal(changed)
		must(n.t, err)
	}
	tree, err := tmpfs.Clone(target)
	must(n.t, err)
	defer tree.Close()
	must(n.t, tree.SetRecord(data))
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

// A record of another version, or a damaged one, never costs a pod its volume: the
// plugin takes over what it understands, and the kubelet's next call sets the
// rest right.
func TestRecordsOfOtherVersionsAndDamagedOnes(t *testing.T) {
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
			n := newNode(t, ca)
			p, goes := newPod("web-0"), newPod("web-1")
			n.start()
			for _, p := range []pod{p, goes} {
				must(t, n.publish(p))
				n.changeRecord(p, test.change)
			}
			n.kill()
			n.start()
			if _, err := readAll(n.target(p), usual); err != nil {
				t.Error(err)
			}
			if _, err := n.health(p); (err == nil) != test.takeOver {
				t.Errorf("taken over: %v", err)
			}
			if !test.takeOver && strings.Count(n.logs.String(), "Cannot take over a mounted volume") != 2 {
				t.Error("it is not reported")
			}
			must(t, n.unpublish(goes)) // whatever it says
			n.expectGone(goes)
			must(t, n.publish(p))
			eventually(t, 30*time.Second, "a whole record", func() bool { return n.recordIsWhole(p) })
			n.kill()
			n.start()
			n.expectTracked(p)
			if _, err := readAll(n.target(p), usual); err != nil {
				t.Error(err)
			}
			must(t, n.unpublish(p))
			n.expectGone(p)
			n.stop()
		})
	}
}

// recordIsWhole tells whether the record says of which volume it is, and no other
// certificate than the one that is mounted.
func (n *node) recordIsWhole(p pod) bool {
	n.t.Helper()
	target, err := os.Open(n.target(p))
	must(n.t, err)
	defer target.Close()
	data, err := tmpfs.Record(target)
	must(n.t, err)
	var r struct {
		VolumeID, Serial string
		Target           string
		NotAfter         time.Time
		Attributes       map[string]string
		Pod              struct{ Name string }
	}
	if json.Unmarshal(data, &r) != nil {
		return false
	}
	leaf, err := read(n.target(p), usual)
	must(n.t, err)
	return r.VolumeID == p.volumeID() && r.Pod.Name == p.name && n.kubeletDir+"/"+r.Target == n.target(p) && maps.Equal(r.Attributes, p.attributes) &&
		(r.Serial == "" || r.Serial == leaf.SerialNumber.String() && r.NotAfter.Equal(leaf.NotAfter))
}

// A volume that somebody has mounted on top of itself is taken over once.
func TestTakenOverOnce(t *testing.T) {
	n := newNode(t, startCA(t))
	p := newPod("web-0")
	n.start()
	must(t, n.publish(p))
	n.kill()
	must(t, syscall.Mount(n.target(p), n.target(p), "", syscall.MS_BIND, ""))
	n.start()
	if !strings.Contains(n.logs.String(), `"Took over mounted volumes" count=1`) {
		t.Error("not taken over once")
	}
	must(t, n.unpublish(p))
	n.expectGone(p)
	n.stop()
}
