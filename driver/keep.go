package driver

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/schedule"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// renewalTimeout bounds one try.
const renewalTimeout = 2 * time.Minute

// errGone says that a volume is not mounted any more.
var errGone = errors.New("the volume is not mounted")

// track keeps the certificate of a mounted volume fresh until untrack.
func (d *Driver) track(v *volume) {
	if v.err == nil { // else nothing is known of whom to ask for what
		v.item = d.authorities[v.attributes.Issuer].line.Add(v.validity(), func(ctx context.Context) (renewal.Validity, error) {
			return d.keep(ctx, v)
		})
	}
	d.mu.Lock()
	d.volumes[v.record.VolumeID] = v
	d.mu.Unlock()
}

func (d *Driver) tracked(id string) *volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.volumes[id]
}

// untrack forgets the volume, after a renewal that may be under way has ended.
// It returns nil for one that is not known.
func (d *Driver) untrack(id string) *volume {
	d.mu.Lock()
	v := d.volumes[id]
	delete(d.volumes, id)
	d.mu.Unlock()
	if v != nil && v.item != nil {
		d.authorities[v.attributes.Issuer].line.Remove(v.item)
	}
	return v
}

// keep renews the volume, and says so if it cannot.
func (d *Driver) keep(ctx context.Context, v *volume) (renewal.Validity, error) {
	limited, cancel := context.WithTimeout(ctx, renewalTimeout)
	defer cancel()
	err := d.renew(limited, v)
	logger := klog.FromContext(ctx)
	switch {
	case errors.Is(err, errGone):
		v.gone.Store(true)
		logger.Info("Stopped renewing a volume that is not mounted any more", v.logValues()...)
		err = schedule.ErrGone
	case err != nil && ctx.Err() == nil:
		logger.Error(err, "Renewal failed", append(v.logValues(), "notAfter", v.record.NotAfter.UTC().Format(time.RFC3339))...)
	}
	return v.validity(), err
}

// openMounted opens the target path, and makes sure that it is the volume which
// is mounted there. If not, the error is errGone.
func (d *Driver) openMounted(id, path string) (*os.File, error) {
	target, err := d.targets.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errGone
	}
	if err != nil {
		return nil, err
	}
	data, err := tmpfs.Record(target)
	if err == nil && (data == nil || ofAnother(data, id)) {
		err = errGone
	}
	if err != nil {
		target.Close()
		return nil, err
	}
	return target, nil
}

// restore takes over the volumes that an earlier process of this driver left
// mounted. A volume that cannot be read is logged and left alone: the next call
// of the kubelet for it sets it right.
func (d *Driver) restore(ctx context.Context) error {
	paths, err := tmpfs.List(d.config.Name)
	if err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	count := 0
	for _, path := range paths {
		relative, below := d.targets.Relative(path)
		if !below {
			continue // of another kubelet's, or a bind mount
		}
		switch v, err := d.restoreAt(relative); {
		case err != nil:
			logger.Error(err, "Cannot take over a mounted volume", "path", path)
		case v != nil && d.tracked(v.record.VolumeID) != nil:
			// Mounted a second time, on top of itself.
		case v != nil:
			if v.err != nil {
				logger.Error(v.err, "A mounted volume does not fit the configuration and cannot be renewed", v.logValues()...)
			}
			d.track(v)
			count++
		}
	}
	logger.Info("Took over mounted volumes", "count", count)
	return nil
}

// restoreAt reads the volume at the target path, or nothing if that is a bind
// mount of a volume that belongs elsewhere.
func (d *Driver) restoreAt(path string) (*volume, error) {
	target, err := d.targets.Open(path)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	data, err := tmpfs.Record(target)
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(data)
	if err != nil || r.Target != path {
		return nil, err
	}
	d.correct(&r, target)
	v := d.takeOver(r)
	// Without it, the configuration's roots are what there is.
	if learnt, err := readLearnt(target); err == nil && v.err == nil {
		d.authorities[v.attributes.Issuer].issuer.Trust().Learn(learnt)
	}
	return v, nil
}

// correct makes the record of the volume at target say which certificate is
// mounted. A process that was killed between writing the files and writing the
// record has left that of the certificate before. Where there is no certificate
// to be read, a new one is due at once.
func (d *Driver) correct(r *record, target *os.File) {
	a, err := attributes.Parse(r.Attributes, r.Pod, r.MountGroup, d.attributes)
	if err != nil {
		return // it is not known where the certificate is, and nothing can be renewed
	}
	leaf, written, err := readLeaf(target, a)
	switch {
	case err != nil:
		r.Issued = time.Time{}
	case leaf.SerialNumber.String() != r.Serial || r.NotAfter.IsZero():
		r.Issued, r.NotAfter, r.Serial = written, leaf.NotAfter, leaf.SerialNumber.String()
	}
}

func readLeaf(target *os.File, a attributes.Attributes) (leaf *x509.Certificate, written time.Time, err error) {
	root, err := tmpfs.Root(target)
	if err != nil {
		return nil, written, err
	}
	defer root.Close()
	return payload.ReadLeaf(root, a)
}

// takeOver makes a volume of one that is mounted.
func (d *Driver) takeOver(r record) *volume {
	v, err := d.newVolume(r)
	if err != nil {
		v = &volume{record: r, err: err}
	}
	return v
}
