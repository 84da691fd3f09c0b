package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/schedule"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// record is what a mounted volume says about itself, in an extended attribute
// of its tmpfs. It holds no key and no token.
type record struct {
	VolumeID string `json:"volumeID"`
	// Target is the target path, relative to the kubelet's directory. A bind
	// mount of the volume elsewhere has the same record, but another place.
	Target string     `json:"target"`
	Pod    issuer.Pod `json:"pod"`
	// Attributes are the user's, as written in the pod's spec.
	Attributes map[string]string `json:"attributes,omitempty"`
	MountGroup string            `json:"mountGroup,omitempty"`
	// Issued is when the mounted certificate came, by the node's clock, and
	// NotAfter when it expires.
	Issued   time.Time `json:"issued"`
	NotAfter time.Time `json:"notAfter"`
	// Serial is its serial number, in decimal.
	Serial string `json:"serial"`
}

// parseRecord takes what it knows of a record that an older or a newer version
// has written, as long as that says which volume it is.
func parseRecord(data []byte) (record, error) {
	var r record
	err := json.Unmarshal(data, &r)
	if err == nil && (r.VolumeID == "" || r.Target == "") {
		err = errors.New("it does not say of which volume it is")
	}
	if err != nil {
		return r, fmt.Errorf("the volume's record cannot be read: %w", err)
	}
	return r, nil
}

// ofAnother tells whether the data is the record of another volume than id. One
// that cannot be read may be of any: only this driver writes records.
func ofAnother(data []byte, id string) bool {
	r, err := parseRecord(data)
	return err == nil && r.VolumeID != id
}

// sameSpec tells whether both ask for the same certificate in the same files.
func (r record) sameSpec(other record) bool {
	return r.Pod == other.Pod && r.MountGroup == other.MountGroup && maps.Equal(r.Attributes, other.Attributes)
}

// volume is a volume that is mounted, or about to be.
type volume struct {
	// record is the mount's. Its Issued, NotAfter and Serial are its renewals'
	// alone, once it is tracked; the rest stays.
	record     record
	attributes attributes.Attributes
	// err says why a volume that is mounted cannot be renewed: its attributes
	// do not fit a configuration that has changed since.
	err error

	writing sync.Mutex                   // held while what is mounted is rewritten
	item    *schedule.Item               // once it is tracked; nil if it cannot be renewed
	gone    atomic.Bool                  // it was found not to be mounted any more
	token   atomic.Pointer[issuer.Token] // the newest; only in memory
}

// validity is that of the mounted certificate.
func (v *volume) validity() renewal.Validity {
	r := v.record
	return renewal.Validity{Issued: r.Issued, NotAfter: r.NotAfter, Before: v.attributes.RenewBefore, Spread: renewal.SpreadOf(r.Serial)}
}

// state is what there is to say about the renewal of a tracked volume.
func (v *volume) state() schedule.State {
	if v.item == nil {
		return schedule.State{Validity: v.validity(), Err: v.err}
	}
	return v.item.State()
}

// newVolume checks the attributes of r.
func (d *Driver) newVolume(r record) (*volume, error) {
	parsed, err := attributes.Parse(r.Attributes, r.Pod, r.MountGroup, d.attributes)
	if err != nil {
		return nil, err
	}
	return &volume{record: r, attributes: parsed}, nil
}

// applicant is the pod with its newest token.
func (v *volume) applicant() issuer.Applicant {
	a := issuer.Applicant{Pod: v.record.Pod}
	if token := v.token.Load(); token != nil {
		a.Token = *token
	}
	return a
}

// take keeps the token if it is newer than the one that is there: a renewal may be
// waiting for it.
func (v *volume) take(token issuer.Token) {
	if !token.NewerThan(v.applicant().Token) {
		return
	}
	v.token.Store(&token)
	if v.item != nil {
		v.item.Token()
	}
}

// logValues identify the volume in logs.
func (v *volume) logValues() []any { return v.record.logValues() }

func (r record) logValues() []any {
	return []any{"pod", r.Pod.Namespace + "/" + r.Pod.Name, "volumeID", r.VolumeID}
}
