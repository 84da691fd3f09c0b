package driver

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/driver/volume"
)

// A driver name whose process restarts is no reason to report anything. If there is still
// no process after some seconds, the log says so once, and /readyz and metrics while it
// is so.
func TestLeftBehindIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t, false)
		ctx, log := logging(t)
		found := func() map[string]*otherDriver {
			o := d.readOthers("tls.example.com", nil)
			o.volumes, o.unread = []otherVolume{{&volume.Volume{}, "tls.example.com", o.reason}}, 2
			return map[string]*otherDriver{"tls.example.com": o}
		}
		expect := func(when string, lines, count int) {
			t.Helper()
			if got := strings.Count(log.String(), `"Mounted volumes of another driver name are not renewed"`); got != lines {
				t.Errorf("%s: %d lines in the log:\n%s", when, got, log)
			}
			details, _ := d.Ready()
			if got := strings.Contains(details, fmt.Sprintf(`driver "tls.example.com": warning: %d mounted volumes are not renewed`, count)); got != (count > 0) {
				t.Errorf("%s: details %q", when, details)
			}
			const series = "step_csi_left_behind_volumes"
			if got := scrape(t, registry, series)[series]; got != float64(count) {
				t.Errorf("%s: %v volumes", when, got)
			}
			if got := d.leftBehind.countUnread(); got != min(count, 2) {
				t.Errorf("%s: %d unread volumes", when, got)
			}
		}
		d.leftBehind.replace(ctx, found())
		expect("at first", 0, 0)
		d.leftBehind.replace(ctx, nil) // its process is back
		time.Sleep(leftBehindCheck)
		d.leftBehind.replace(ctx, found())
		expect("again", 0, 0)
		for range 10 {
			time.Sleep(leftBehindWait)
			d.leftBehind.replace(ctx, found())
			expect("later", 1, 3)
		}
		d.leftBehind.replace(ctx, nil)
		expect("at the end", 1, 0)
	})
}

// The names come from the mount table. Sockets tell whether a process serves a driver name.
// No name leads to a socket outside of the directories of plugins.
func TestOtherDriverIsServed(t *testing.T) {
	directory, err := os.MkdirTemp("", "driver-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	d := &Driver{config: Config{KubeletDir: directory}}
	listen := func(path string) net.Listener {
		t.Helper()
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	for _, path := range []string{"plugins_registry", "plugins/csi.example"} {
		if err := os.MkdirAll(filepath.Join(directory, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	listen(filepath.Join(directory, "escape-reg.sock"))
	dead := listen(filepath.Join(directory, "plugins_registry/dead.example-reg.sock"))
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	listen(filepath.Join(directory, "plugins_registry/tls.example-reg.sock"))
	listen(filepath.Join(directory, "plugins/csi.example/csi.sock"))
	for name, want := range map[string]bool{
		"tls.example": true, "csi.example": true,
		"dead.example": false, "none.example": false, "../escape": false, "": false, "..": false, strings.Repeat("long.", 1000): false, "a b": false,
	} {
		if got := d.isServed(name); got != want {
			t.Errorf("%q is served: %v", name, got)
		}
	}
}
