package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// kubernetesGroups begins the groups that Kubernetes reserves for itself. An API server
// that trusts the CA takes the organizations of a client's certificate for its groups:
// https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates
const kubernetesGroups = "system:"

// subjectRules deny subject fields and template data before the validations decide.
type subjectRules struct {
	fields       []string // that are allowed
	templateData bool
	// decision returns who can allow it, by this setting.
	decision func(setting string) string
}

// newSubjectRules rejects unknown fields, and what no validation decides about.
func newSubjectRules(c Config) (subjectRules, error) {
	var known []string
	for _, field := range names.SubjectFields() {
		known = append(known, field.Key)
	}
	for i, key := range c.AllowSubjectFields {
		if !slices.Contains(known, key) {
			return subjectRules{}, fmt.Errorf("allowSubjectFields[%d]: %s is not a subject field; these are: %s", i, names.Quote(key), strings.Join(known, ", "))
		}
		if !mentioned(c.Validations, "request."+key) {
			return subjectRules{}, fmt.Errorf("allowSubjectFields[%d]: no validation mentions request.%s, so any pod could have any value; add one, such as request.%s.all(v, v == pod.namespace)", i, key, key)
		}
	}
	if c.AllowTemplateData && !mentioned(c.Validations, "request.templateData") {
		return subjectRules{}, errors.New("allowTemplateData: no validation mentions request.templateData, so any pod could have any data; add one, such as request.templateData.all(key, key == 'team')")
	}
	return subjectRules{c.AllowSubjectFields, c.AllowTemplateData, func(setting string) string {
		settings := "policy." + setting
		if c.Issuer != "" {
			settings += " or issuers." + c.Issuer + ".policy." + setting
		}
		return " (the cluster's administrator can allow it: " + settings + "; see docs/subject.md)"
	}}, nil
}

// mentioned tells whether the expression of a validation contains the text.
func mentioned(validations []Validation, text string) bool {
	return slices.ContainsFunc(validations, func(v Validation) bool { return strings.Contains(v.Expression, text) })
}

// check says which subject field or template data the pod may not have.
func (r subjectRules) check(req issuer.Request) error {
	if err := req.Subject.Check(); err != nil {
		return err
	}
	for _, organization := range req.Subject.Organizations {
		if strings.HasPrefix(strings.ToLower(organization.String()), kubernetesGroups) {
			return fmt.Errorf("the organization %s is reserved: the API server may take it for a group of Kubernetes; use another one", names.Quote(organization.String()))
		}
	}
	for _, field := range names.SubjectFields() {
		if values := *field.Of(&req.Subject); len(values) > 0 && !slices.Contains(r.fields, field.Key) {
			return fmt.Errorf("%s %s is not allowed: the policy allows no %s%s", field.Name, names.Quote(values[0].String()),
				field.Key, r.decision("allowSubjectFields: ["+field.Key+"]"))
		}
	}
	if req.TemplateData != (issuer.TemplateData{}) && !r.templateData {
		return fmt.Errorf("template data is not allowed%s", r.decision("allowTemplateData: true"))
	}
	return nil
}
