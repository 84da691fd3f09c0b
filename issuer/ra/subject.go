package ra

import (
	"fmt"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

// errSubjectIgnored is the error for the answer of an authority of an earlier version.
var errSubjectIgnored = fmt.Errorf("%w: this version of the registration authority ignores subject fields and template data; "+
	"upgrade it, or leave these attributes out", issuer.InvalidAnswer)

// setSubject sets the subject fields and the template data of the message.
func setSubject(message *rapb.SignRequest, req issuer.Request) {
	message.TemplateData = req.TemplateData.String()
	if len(req.Subject.Values()) == 0 {
		return
	}
	message.Subject = &rapb.Subject{}
	for _, field := range names.SubjectFields() {
		*subjectField(message.Subject, field) = names.Texts(*field.Of(&req.Subject))
	}
}

// ReadSubject reads the subject fields and the template data of the message into req.
func ReadSubject(message *rapb.SignRequest, req *issuer.Request) (err error) {
	if text := message.GetTemplateData(); text != "" {
		if req.TemplateData, err = issuer.ParseTemplateData(text); err != nil {
			return fmt.Errorf("template data: %w", err)
		}
	}
	if message.GetSubject() == nil {
		return nil
	}
	for _, field := range names.SubjectFields() {
		texts := *subjectField(message.GetSubject(), field)
		if len(texts) > names.MaxSubjectValues {
			return fmt.Errorf("%s: %d values; the limit is %d", field.Name, len(texts), names.MaxSubjectValues)
		}
		if *field.Of(&req.Subject), err = names.ParseAll(field.Parse, texts...); err != nil {
			return fmt.Errorf("%s: %w", field.Name, err)
		}
	}
	return nil
}

// subjectField returns the field of the message.
func subjectField(s *rapb.Subject, field names.SubjectField) *[]string {
	return map[string]*[]string{
		"organizations":       &s.Organizations,
		"organizationalUnits": &s.OrganizationalUnits,
		"countries":           &s.Countries,
		"provinces":           &s.Provinces,
		"localities":          &s.Localities,
		"streetAddresses":     &s.StreetAddresses,
		"postalCodes":         &s.PostalCodes,
	}[field.Key]
}
