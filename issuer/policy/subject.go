package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// kubernetesGroups begin the groups that Kubernetes and kubeadm have for themselves, such as
// system:masters and kubeadm:cluster-admins. An API server that trusts the CA takes the
// organizations of a client's certificate for its groups:
// https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates
// https://github.com/kubernetes/kubeadm/issues/2414
var kubernetesGroups = []string{"system:", "kubeadm:"}

// subjectRules deny subject fields and template data before the validations decide.
type subjectRules struct {
	fields       []string // that are allowed
	templateData bool
	// decision returns who can allow it, by this setting.
	decision func(setting string) string
}

// newSubjectRules rejects unknown fields, and what no validation decides about.
func newSubjectRules(c Config, env *cel.Env) (subjectRules, error) {
	var known []string
	for _, field := range names.SubjectFields() {
		known = append(known, field.Key)
	}
	for i, key := range c.AllowSubjectFields {
		if !slices.Contains(known, key) {
			return subjectRules{}, fmt.Errorf("allowSubjectFields[%d]: %s is not a subject field; these are: %s", i, names.Quote(key), strings.Join(known, ", "))
		}
		if !mentioned(env, c.Validations, key) {
			return subjectRules{}, fmt.Errorf("allowSubjectFields[%d]: no validation mentions request.%s, so any pod could have any value; add one, such as request.%s.all(v, v == pod.namespace)", i, key, key)
		}
	}
	if c.AllowTemplateData && !mentioned(env, c.Validations, "templateData") {
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

// mentioned tells whether the expression of a validation reads the field of the request. A
// comment or a text with its name decides about nothing.
func mentioned(env *cel.Env, validations []Validation, field string) bool {
	return slices.ContainsFunc(validations, func(v Validation) (found bool) {
		parsed, issues := env.Parse(v.Expression)
		if issues.Err() != nil {
			return false // New returns the error
		}
		ast.PreOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
			if e.Kind() == ast.SelectKind && e.AsSelect().FieldName() == field {
				of := e.AsSelect().Operand()
				found = found || of.Kind() == ast.IdentKind && of.AsIdent() == "request"
			}
		}))
		return found
	})
}

// check says which subject field or template data the pod may not have.
func (r subjectRules) check(req issuer.Request) error {
	if err := req.Subject.Check(); err != nil {
		return err
	}
	for _, organization := range req.Subject.Organizations {
		lower := strings.ToLower(organization.String())
		if slices.ContainsFunc(kubernetesGroups, func(prefix string) bool { return strings.HasPrefix(lower, prefix) }) {
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
