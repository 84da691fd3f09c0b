package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/panics"
)

const (
	// leftBehindCheck is how often the driver looks for volumes of other driver names.
	leftBehindCheck = time.Minute
	// leftBehindWait is how long a driver name may be without a process before its volumes
	// count as left behind: its process may restart at the same time.
	leftBehindWait = 15 * time.Second
	// mostDriverNames limits the other driver names in /readyz. Only a privileged process
	// can mount volumes of other names where the driver looks.
	mostDriverNames = 8
)

// leftBehind has the volumes of other driver names that no process on the node serves. An
// earlier release with another driver name left them mounted. Only a process of that name
// can renew them. The zero value is empty.
type leftBehind struct {
	mu      sync.Mutex
	drivers map[string]*otherDriver
}

// otherDriver is another driver name with volumes that no process serves.
type otherDriver struct {
	reason   error     // why its volumes are not renewed
	since    time.Time // when no process served it for the first time
	reported bool
	volumes  []otherVolume
	unread   int       // volumes that could not be read
	first    time.Time // when the first of the certificates expires; zero if unknown
}

// otherVolume is a volume of another driver name.
type otherVolume struct {
	*volume.Volume
	driver string
	reason error
}

// count is the number of volumes that are known to be left behind.
func (o *otherDriver) count() int {
	if !o.reported {
		return 0
	}
	return len(o.volumes) + o.unread
}

// watchLeftBehind looks for volumes that are left behind, and logs each of their driver
// names once, until ctx ends.
func (d *Driver) watchLeftBehind(ctx context.Context) {
	for {
		d.findLeftBehind(ctx)
		wait := leftBehindCheck
		if d.leftBehind.suspects() {
			wait = leftBehindWait
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (d *Driver) findLeftBehind(ctx context.Context) {
	defer panics.Recover(ctx, "find volumes of other driver names", nil)
	others, err := tmpfs.ListOthers(d.config.Name, "/kubernetes.io~csi/")
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot look for volumes of other driver names")
		return
	}
	paths := map[string][]string{} // by driver name
	for _, other := range others {
		if path, below := d.node.Targets.Relative(other.Path); below && nameInPod(path) != "" {
			paths[other.Source] = append(paths[other.Source], path)
		}
	}
	found := map[string]*otherDriver{}
	for name, paths := range paths {
		if !d.isServed(name) {
			if o := d.readOthers(name, paths); len(o.volumes)+o.unread > 0 {
				found[name] = o
			}
		}
	}
	d.leftBehind.replace(ctx, found)
}

// isServed tells whether a process on this node serves the driver name. Other drivers'
// CSI sockets are not visible in the node plugin's pod, but the registration sockets are.
func (d *Driver) isServed(name string) bool {
	if names.CheckSubdomain(name) != nil {
		return false // no driver can have it, and it must not become a path
	}
	for _, path := range []string{
		registrationSocket(d.config.KubeletDir, name),
		filepath.Join(d.config.KubeletDir, "plugins", name, "csi.sock"),
	} {
		connection, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			connection.Close()
			return true
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EINVAL) {
			return true // it may be alive but busy
		}
	}
	return false
}

// readOthers reads the volumes at the paths. Mounts of other programs are none.
func (d *Driver) readOthers(name string, paths []string) *otherDriver {
	o := &otherDriver{since: time.Now(), reason: fmt.Errorf("no process on this node serves the driver %s, with which an earlier release mounted this: set driverName back to it, "+
		"or install a second release with driverName: %[1]s, until the pods with such volumes have been replaced", names.Quote(name))}
	for _, path := range paths {
		v, err := volume.Find(d.node, path)
		switch {
		case errors.Is(err, tmpfs.ErrForeign), errors.Is(err, fs.ErrNotExist), errors.Is(err, volume.ErrGone):
		case err != nil:
			o.unread++
		default:
			o.volumes = append(o.volumes, otherVolume{v, name, o.reason})
			o.first = earlier(o.first, v.State().Validity.NotAfter)
		}
	}
	return o
}

// replace sets what was found, and logs the driver names that no process has served
// for leftBehindWait.
func (l *leftBehind) replace(ctx context.Context, found map[string]*otherDriver) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, o := range found {
		if before := l.drivers[name]; before != nil {
			o.since, o.reported = before.since, before.reported
		}
		if o.reported || time.Since(o.since) < leftBehindWait {
			continue
		}
		o.reported = true
		klog.FromContext(ctx).Error(o.reason, "Mounted volumes of another driver name are not renewed", "driver", label(name), "count", o.count(), "notAfter", o.earliest())
	}
	l.drivers = found
}

// suspects tells whether volumes may be left behind, which is not known for sure yet.
func (l *leftBehind) suspects() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.drivers {
		if !o.reported {
			return true
		}
	}
	return false
}

// earliest is when the first of the certificates expires.
func (o *otherDriver) earliest() string {
	if o.first.IsZero() {
		return "unknown"
	}
	return o.first.UTC().Format(time.RFC3339)
}

// all returns the volumes that are left behind and could be read.
func (l *leftBehind) all() (all []otherVolume) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.drivers {
		if o.reported {
			all = append(all, o.volumes...)
		}
	}
	return all
}

// countUnread counts the volumes that are left behind and could not be read.
func (l *leftBehind) countUnread() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.drivers {
		if o.reported {
			n += o.unread
		}
	}
	return n
}

// OtherDriver is another driver name with volumes that no process serves.
type OtherDriver struct {
	Driver  string `json:"driver"`
	Volumes int    `json:"volumes"`
	// NotAfter is when the first of the certificates expires, or "unknown".
	NotAfter string `json:"notAfter"`
}

// summary returns the driver names with the most volumes first.
func (l *leftBehind) summary() (all []OtherDriver) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(l.drivers)) {
		if o := l.drivers[name]; o.count() > 0 {
			all = append(all, OtherDriver{Driver: label(name), Volumes: o.count(), NotAfter: o.earliest()})
		}
	}
	slices.SortStableFunc(all, func(a, b OtherDriver) int { return cmp.Compare(b.Volumes, a.Volumes) })
	return all[:min(len(all), mostDriverNames)]
}

// details has a line for each driver name, for /readyz.
func (l *leftBehind) details() string {
	var lines strings.Builder
	for _, o := range l.summary() {
		fmt.Fprintf(&lines, "driver %s: warning: %d mounted volumes are not renewed, because no process on this node serves this driver name; the first certificate expires at %s\n",
			names.Quote(o.Driver), o.Volumes, o.NotAfter)
	}
	return lines.String()
}

// count is the number of volumes that are left behind.
func (l *leftBehind) count() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.drivers {
		n += o.count()
	}
	return n
}
