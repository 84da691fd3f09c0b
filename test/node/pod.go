package node

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
)

// Pod is a volume of a pod, as the kubelet sees it. The pod has the service account web.
type Pod struct {
	Name       string
	Namespace  string            // "shop", if empty
	Volume     string            // the volume's name in the pod's spec; "tls", if empty
	UID        string            // "uid-" and the name, if empty
	Attributes map[string]string // of the volume
	Group      string            // fsGroup
	Secret     map[string]string // that nodePublishSecretRef names
}

// With returns the pod with another attribute.
func (p Pod) With(key, value string) Pod {
	p.Attributes = maps.Clone(p.Attributes)
	if p.Attributes == nil {
		p.Attributes = map[string]string{}
	}
	p.Attributes[key] = value
	return p
}

// ID is the pod's UID.
func (p Pod) ID() string {
	if p.UID != "" {
		return p.UID
	}
	return "uid-" + p.Name
}

// VolumeID has the form that the kubelet gives to inline volumes.
func (p Pod) VolumeID() string {
	sum := sha256.Sum256([]byte(p.Volume + p.ID()))
	return "csi-" + hex.EncodeToString(sum[:])
}
