package volume

import "slices"

// Names returns the names that the volume's certificate was requested with: the common name
// first, unless it is one of the others. There are none if the volume is unfit.
func (v *Volume) Names() []string {
	if v.unfit != nil {
		return nil
	}
	r := v.attributes.Request
	all := r.AlternativeNames()
	if name := r.CommonName.String(); name != "" && !slices.Contains(all, name) {
		all = slices.Insert(all, 0, name)
	}
	return all
}

// Serial returns the serial number of the mounted certificate, in decimal. It is empty if
// it is not known.
func (v *Volume) Serial() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.certificate.Serial
}
