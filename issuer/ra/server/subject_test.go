package server_test

import (
	"context"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/smallstep/certificates/authority/provisioner"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/policy"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/ra/server"
	"github.com/flexstack/step-csi/issuer/stepca"
	"github.com/flexstack/step-csi/test/embeddedca"
	"github.com/flexstack/step-csi/test/reviews"
)

// organizationOfNamespace is the policy of docs/subject.md.
func organizationOfNamespace(c *policy.Config) {
	c.AllowSubjectFields = []string{"organizations", "organizationalUnits"}
	c.Validations = append(policy.Default(), policy.Validation{
		Expression:        "request.organizations.all(o, o == pod.namespace)",
		MessageExpression: "'a pod in ' + pod.namespace + ' may only have the organization ' + pod.namespace",
	}, policy.Validation{
		Expression: "request.organizationalUnits.size() <= 3",
	})
}

// Subject fields reach the certificate, and denials the pod's event, in the same way with
// and without a registration authority.
func TestSubjects(t *testing.T) {
	template, err := os.ReadFile("../../../deploy/step-ca/subject.tpl")
	if err != nil {
		t.Fatal(err)
	}
	withTemplate, without := start(t, embeddedca.Config{}), start(t, embeddedca.Config{Name: "Other"})
	if err := withTemplate.Change(func(p *provisioner.JWK) {
		p.Options = &provisioner.Options{X509: &provisioner.X509Options{Template: string(template)}}
	}); err != nil {
		t.Fatal(err)
	}
	subject := names.Subject{
		Organizations:       names.Must(names.ParseAll(names.ParseOrganization, "shop")),
		OrganizationalUnits: names.Must(names.ParseAll(names.ParseOrganization, "Web")),
	}
	data := names.Must(issuer.ParseTemplateData(`{"organization": "pay"}`))
	of := func(organization string) names.Subject {
		return names.Subject{Organizations: names.Must(names.ParseAll(names.ParseOrganization, organization))}
	}
	for _, test := range []struct {
		name    string
		ca      *embeddedca.CA
		policy  func(*policy.Config)
		subject names.Subject
		data    issuer.TemplateData
		outcome issuer.Outcome
		want    string // the error
	}{
		{"allowed", withTemplate, organizationOfNamespace, subject, issuer.TemplateData{}, issuer.OK, ""},
		{"default", withTemplate, func(*policy.Config) {}, subject, issuer.TemplateData{}, issuer.Denied,
			`denied: organization "shop" is not allowed: the policy allows no organizations ` +
				"(the cluster's administrator can allow it: policy.allowSubjectFields: [organizations] or issuers.default.policy.allowSubjectFields: [organizations]; see docs/subject.md)"},
		{"data", withTemplate, func(*policy.Config) {}, names.Subject{}, data, issuer.Denied,
			"denied: template data is not allowed (the cluster's administrator can allow it: policy.allowTemplateData: true or issuers.data.policy.allowTemplateData: true; see docs/subject.md)"},
		{"data-with-fields", withTemplate, organizationOfNamespace, subject, data, issuer.Denied,
			"denied: template data is not allowed (the cluster's administrator can allow it: policy.allowTemplateData: true or issuers.data-with-fields.policy.allowTemplateData: true; see docs/subject.md)"},
		{"other-organization", withTemplate, organizationOfNamespace, of("pay"), issuer.TemplateData{}, issuer.Denied,
			"denied: a pod in shop may only have the organization shop (decided by the policy in step-csi's configuration)"},
		{"kubernetes", withTemplate, organizationOfNamespace, of("System:masters"), issuer.TemplateData{}, issuer.Denied,
			`denied: the organization "System:masters" is reserved: the API server may take it for a group of Kubernetes; use another one`},
		{"no-template", without, organizationOfNamespace, subject, issuer.TemplateData{}, issuer.InvalidAnswer,
			`invalid answer: the provisioner's X.509 template removed organization "shop", removed organizational unit "Web"; a certificate must have exactly the names that the pod may have: ` +
				"change the template at the CA, or request what it allows (step-ca's default template ignores subject fields: give the provisioner the template of docs/subject.md) (serial number of the certificate: SERIAL)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ofNode, ofAuthority := subjectIssuer(t, test.name, test.ca, test.policy), subjectIssuer(t, test.name, test.ca, test.policy)
			authority := serve(t, test.ca, map[string]server.Issuer{test.name: ofAuthority})
			for mode, i := range map[string]*issuer.Issuer{"node": ofNode.Issuer, "ra": authority.issuer(t, test.name, func(*ra.Config) {})} {
				want := test.want
				if mode == "ra" {
					want = "registration authority " + authority.url + ": " + want
				}
				c, err := issueSubject(t, i, test.subject, test.data)
				if outcome := issuer.OutcomeOf(err); outcome != test.outcome || err != nil && withoutSerial(err.Error()) != withoutSerial(want) {
					t.Errorf("mode %s: %s\n got %v\nwant %s", mode, outcome.Label(), err, want)
				}
				if err != nil || test.want != "" {
					continue
				}
				if s := c.Leaf().Subject; !slices.Equal(s.Organization, []string{"shop"}) || !slices.Equal(s.OrganizationalUnit, []string{"Web"}) || s.CommonName != "web.shop" || len(s.Names) != 3 {
					t.Errorf("mode %s: the subject is %s", mode, s)
				}
			}
		})
	}
}

// withoutSerial replaces what differs in each run.
func withoutSerial(text string) string {
	return regexp.MustCompile(`certificate: (\d+|SERIAL)`).ReplaceAllString(placeholders(text), "certificate: SERIAL")
}

// subjectIssuer is newIssuer with another policy.
func subjectIssuer(t *testing.T, name string, ca *embeddedca.CA, change func(*policy.Config)) server.Issuer {
	t.Helper()
	s, err := stepca.New(configFor(ca))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c := policy.Config{
		ClusterDomain: names.Must(names.ParseClusterDomain("cluster.local")), TrustDomain: names.Must(names.ParseTrustDomain("cluster.local")), Issuer: name,
	}
	change(&c)
	p, err := policy.New(c)
	if err != nil {
		t.Fatal(err)
	}
	i, err := issuer.New(issuer.Config{Signer: s, Policy: p.Check})
	if err != nil {
		t.Fatal(err)
	}
	return server.Issuer{Issuer: i, RootsRefresh: time.Hour}
}

// issueSubject requests a certificate for the pod web.
func issueSubject(t *testing.T, i *issuer.Issuer, subject names.Subject, data issuer.TemplateData) (*issuer.Credential, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(klog.NewContext(t.Context(), logr.Discard()), time.Minute)
	defer cancel()
	return i.Issue(ctx, issuer.Applicant{Pod: web, Token: issuer.NewToken(reviews.Token(web, "web"), time.Now().Add(time.Hour))}, issuer.Request{
		CommonName: names.Must(names.ParseCommonName("web.shop")), DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "web.shop")),
		Duration: time.Hour, KeyType: issuer.ECDSAP256, Subject: subject, TemplateData: data,
	}, issuer.PrivateKey{})
}
