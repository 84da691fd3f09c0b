package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/driver/payload"
	"github.com/flexstack/step-csi/driver/tmpfs"
	"github.com/flexstack/step-csi/issuer"
)

// Spec is the kubelet's request for a volume.
type Spec struct {
	VolumeID string `json:"volumeID"`
	// Target is the target path, relative to the kubelet's directory. A bind mount of
	// the volume elsewhere has the same record, but another path.
	Target string     `json:"target"`
	Pod    issuer.Pod `json:"pod"`
	// Attributes are the volume attributes in the pod's spec, normalized.
	Attributes map[string]string `json:"attributes,omitempty"`
	MountGroup string            `json:"mountGroup,omitempty"`
	// SELinuxContext is the context of all files, or empty. The kernel keeps it with the
	// mount: it is neither in the record nor changed later.
	SELinuxContext string `json:"-"`
	// Password is that of the pod's Secret. It is only in memory.
	Password payload.Password `json:"-"`
}

// Same tells whether both specs request the same certificate in the same files, whatever the
// password.
func (s Spec) Same(other Spec) bool {
	return s.Pod == other.Pod && s.MountGroup == other.MountGroup && maps.Equal(s.Attributes, other.Attributes)
}

// LogValues identify the volume in logs.
func (s Spec) LogValues() []any {
	return []any{"pod", s.Pod.Namespace + "/" + s.Pod.Name, "volumeID", s.VolumeID}
}

// certificate is the part of the record about the mounted certificate.
type certificate struct {
	// Issued is when the certificate was requested, by the node's clock.
	Issued time.Time `json:"issued"`
	// NotAfter is the leaf's own expiry.
	NotAfter time.Time `json:"notAfter"`
	// Serial is the serial number, in decimal.
	Serial string `json:"serial"`
	// LimitedBy describes a certificate of the CA that expires before the leaf, at
	// ChainNotAfter.
	LimitedBy     string    `json:"limitedBy,omitempty"`
	ChainNotAfter time.Time `json:"chainNotAfter,omitzero"`
}

// expiry is the effective expiry.
func (c certificate) expiry() time.Time {
	if c.LimitedBy != "" {
		return c.ChainNotAfter
	}
	return c.NotAfter
}

// limit sets which certificate of the CA limits the leaf; none if limitedBy is empty.
func (c *certificate) limit(limitedBy string, expiry time.Time) {
	c.LimitedBy, c.ChainNotAfter = "", time.Time{}
	if limitedBy != "" {
		c.LimitedBy, c.ChainNotAfter = limitedBy, expiry
	}
}

// Record describes a mounted volume, in an extended attribute of its tmpfs. It contains
// no key and no token. A container with CAP_SYS_ADMIN can forge the record of its own
// volume. The driver therefore renews a volume of an earlier process only after the
// kubelet has sent the pod's identity and the attributes again: see Find and Adopt.
type Record struct {
	Spec
	certificate
}

func (v *Volume) record() Record { return Record{v.Spec, v.certificate} }

// maxName is longer than any name in a record of this driver. Kubernetes allows names of
// 253 bytes.
const maxName = 256

// ParseRecord reads the known fields of a record, which an older or a newer version may
// have written. The record must name its volume.
func ParseRecord(data []byte) (Record, error) {
	var r Record
	err := json.Unmarshal(data, &r)
	switch {
	case err != nil:
	case r.VolumeID == "" || r.Target == "":
		err = errors.New("volumeID or target is missing")
	case max(len(r.VolumeID), len(r.Pod.Namespace), len(r.Pod.Name), len(r.Pod.UID), len(r.Pod.ServiceAccount), len(r.Pod.Node), len(r.Serial), len(r.LimitedBy)) > maxName:
		err = fmt.Errorf("a name is longer than %d bytes", maxName)
	}
	if err != nil {
		return r, fmt.Errorf("the volume's record cannot be read: %w", err)
	}
	r.Attributes = attributes.Normalize(r.Attributes) // earlier versions did not
	return r, nil
}

func writeRecord(tree *tmpfs.Tree, r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := tree.SetRecord(data); err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	return nil
}
