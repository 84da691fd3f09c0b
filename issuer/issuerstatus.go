package issuer

import (
	"maps"
	"slices"
)

// Status is what a Readiness knows about one issuer.
type Status struct {
	Name string `json:"name"`
	// Ready tells whether the issuer worked when it was last checked. Reason is why not.
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
}

// Statuses returns the status of each issuer, by name.
func (r *Readiness) Statuses() (all []Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(r.issuers)) {
		s := Status{Name: name, Ready: true}
		if err := r.issuers[name].trouble(); err != nil {
			s.Ready, s.Reason = false, oneLine(err.Error())
		}
		all = append(all, s)
	}
	return all
}
