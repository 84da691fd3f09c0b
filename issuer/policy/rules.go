package policy

// Rules are a policy as configuration files have it: that of all issuers, or an issuer's own.
// See Config for the fields.
type Rules struct {
	AllowSubjectFields []string     `json:"allowSubjectFields"`
	AllowTemplateData  bool         `json:"allowTemplateData"`
	Validations        []Validation `json:"validations"`
}

// IsEmpty tells whether an issuer has no policy of its own.
func (r Rules) IsEmpty() bool {
	return len(r.Validations) == 0 && len(r.AllowSubjectFields) == 0 && !r.AllowTemplateData
}

// Of returns an issuer's policy: its own, or this one. An own policy without validations has
// those of this one. It inherits nothing else: what this one's validations restrict, its own
// validations may know nothing about.
func (r Rules) Of(own Rules) Rules {
	if own.IsEmpty() {
		return r
	}
	if len(own.Validations) == 0 {
		own.Validations = r.Validations
	}
	return own
}
