package names

import (
	"crypto/x509/pkix"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// MaxSubjectValues limits the values of all subject fields in one certificate.
const MaxSubjectValues = 32

// The upper bounds of RFC 5280 (appendix A.1) and of X.520, in bytes.
const (
	maxOrganization  = 64
	maxProvince      = 128
	maxLocality      = 128
	maxStreetAddress = 128
	maxPostalCode    = 40
)

// SubjectValue is a value of a subject field, such as the name of an organization. It can
// have blanks, capitals and all printable Unicode.
type SubjectValue struct{ subjectValue string }

// String implements fmt.Stringer.
func (v SubjectValue) String() string { return v.subjectValue }

// Subject has the fields of a certificate's subject besides the common name. The zero
// value has none.
type Subject struct {
	Organizations, OrganizationalUnits []SubjectValue
	Countries, Provinces, Localities   []SubjectValue
	StreetAddresses, PostalCodes       []SubjectValue
}

// SubjectField describes a field of a Subject.
type SubjectField struct {
	// Name is its name in errors.
	Name string
	// Key is its name in configurations and in the expressions of a policy, in the plural.
	Key string
	// Template is its name in X.509 templates of step-ca.
	Template string
	// Parse changes nothing.
	Parse func(text string) (SubjectValue, error)
	// Of returns the field's values.
	Of func(*Subject) *[]SubjectValue
	// In returns the field's values in a certificate.
	In func(pkix.Name) []string
}

// SubjectFields returns all fields, in the order in which errors are reported.
func SubjectFields() []SubjectField {
	return []SubjectField{
		{"organization", "organizations", "organization", ParseOrganization,
			func(s *Subject) *[]SubjectValue { return &s.Organizations }, func(n pkix.Name) []string { return n.Organization }},
		{"organizational unit", "organizationalUnits", "organizationalUnit", ParseOrganization,
			func(s *Subject) *[]SubjectValue { return &s.OrganizationalUnits }, func(n pkix.Name) []string { return n.OrganizationalUnit }},
		{"country", "countries", "country", ParseCountry,
			func(s *Subject) *[]SubjectValue { return &s.Countries }, func(n pkix.Name) []string { return n.Country }},
		{"province", "provinces", "province", ParseProvince,
			func(s *Subject) *[]SubjectValue { return &s.Provinces }, func(n pkix.Name) []string { return n.Province }},
		{"locality", "localities", "locality", ParseLocality,
			func(s *Subject) *[]SubjectValue { return &s.Localities }, func(n pkix.Name) []string { return n.Locality }},
		{"street address", "streetAddresses", "streetAddress", ParseStreetAddress,
			func(s *Subject) *[]SubjectValue { return &s.StreetAddresses }, func(n pkix.Name) []string { return n.StreetAddress }},
		{"postal code", "postalCodes", "postalCode", ParsePostalCode,
			func(s *Subject) *[]SubjectValue { return &s.PostalCodes }, func(n pkix.Name) []string { return n.PostalCode }},
	}
}

// Values returns the values of all fields.
func (s Subject) Values() (all []SubjectValue) {
	for _, field := range SubjectFields() {
		all = append(all, *field.Of(&s)...)
	}
	return all
}

// Check enforces the limit on all values together.
func (s Subject) Check() error {
	if n := len(s.Values()); n > MaxSubjectValues {
		return fmt.Errorf("%d values of subject fields are too many for one certificate; the limit is %d", n, MaxSubjectValues)
	}
	return nil
}

// ParseOrganization parses the name of an organization or of an organizational unit.
func ParseOrganization(text string) (SubjectValue, error) {
	return parseSubjectValue(text, maxOrganization)
}

var countryPattern = regexp.MustCompile(`^[A-Z]{2}$`)

// ParseCountry parses a country code.
func ParseCountry(text string) (SubjectValue, error) {
	if !countryPattern.MatchString(text) {
		return SubjectValue{}, fmt.Errorf("%s is not a country code of two upper-case letters (ISO 3166), such as DE", Quote(text))
	}
	return SubjectValue{text}, nil
}

// ParseProvince parses the name of a state or province.
func ParseProvince(text string) (SubjectValue, error) { return parseSubjectValue(text, maxProvince) }

// ParseLocality parses the name of a city or another locality.
func ParseLocality(text string) (SubjectValue, error) { return parseSubjectValue(text, maxLocality) }

// ParseStreetAddress parses a street address.
func ParseStreetAddress(text string) (SubjectValue, error) {
	return parseSubjectValue(text, maxStreetAddress)
}

// ParsePostalCode parses a postal code.
func ParsePostalCode(text string) (SubjectValue, error) {
	return parseSubjectValue(text, maxPostalCode)
}

// parseSubjectValue rejects what a reader cannot see: with it, two values look the same.
func parseSubjectValue(text string, most int) (SubjectValue, error) {
	switch {
	case text == "" || len(text) > most:
		return SubjectValue{}, fmt.Errorf("%s does not have 1 to %d bytes (X.520)", Quote(text), most)
	case strings.ContainsFunc(text, isInvisible):
		return SubjectValue{}, fmt.Errorf("%+q contains characters that are not visible", text)
	case !IsPrintable(text):
		return SubjectValue{}, fmt.Errorf("%s contains characters that are not printable", Quote(text))
	case strings.TrimSpace(text) != text || strings.Contains(text, "  "):
		return SubjectValue{}, fmt.Errorf("%s: leave out the blanks at the ends, and write single blanks", Quote(text))
	}
	return SubjectValue{text}, nil
}

// isInvisible tells whether the character is one of those that fonts do not show, though they
// are letters, marks or symbols, such as U+3164 HANGUL FILLER and U+2800 BRAILLE PATTERN BLANK:
// https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point
func isInvisible(r rune) bool {
	return r == '\u2800' || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}
