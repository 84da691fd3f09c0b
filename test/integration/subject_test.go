package integration

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/test/node"
)

// The commands of docs/subject.md make the recommended provisioner of a real step-ca sign
// subject fields. Before, it does not. The rest of the certificate stays the same.
func TestRecommendedSubjectTemplate(t *testing.T) {
	t.Parallel()
	ca := startRealCA(t)
	a := newAtTheCA(t, ca)
	a.run("Create the provisioner")
	a.reload("step-csi")
	password, err := os.ReadFile(filepath.Join(a.directory, "step-csi.password"))
	node.Must(t, err)
	whole := newIssuer(t, a.signer("step-csi", password))

	plain := issuer.Request{
		CommonName: names.Must(names.ParseCommonName("web.shop.svc")), DNSNames: names.Must(names.ParseAll(names.ParseDNSName, "web.shop.svc")),
		Duration: time.Hour, KeyType: issuer.ECDSAP256,
	}
	fields := plain
	fields.Subject.Organizations = names.Must(names.ParseAll(names.ParseOrganization, "shop"))
	fields.Subject.OrganizationalUnits = names.Must(names.ParseAll(names.ParseOrganization, `{{ .Token }} "x"`))
	sign := func(r issuer.Request) *x509.Certificate {
		credential, err := whole.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
		node.Must(t, err)
		return credential.Leaf()
	}
	before := sign(plain)
	if _, err := whole.Issue(t.Context(), issuer.Applicant{}, fields, issuer.PrivateKey{}); err == nil || !strings.Contains(err.Error(), "docs/subject.md") {
		t.Errorf("without the template: %v", err)
	}

	a.runOf("subject.md", "1. The template at the CA")
	node.Must(t, ca.Reload("step-csi", func(entry map[string]any) bool {
		options, _ := entry["options"].(map[string]any)
		x509Options, _ := options["x509"].(map[string]any)
		template, _ := x509Options["template"].(string)
		return strings.Contains(template, "organizationalUnit")
	}))
	after, leaf := sign(plain), sign(fields)
	if s := leaf.Subject; len(s.Names) != 3 || s.CommonName != "web.shop.svc" || !slices.Equal(s.Organization, []string{"shop"}) || !slices.Equal(s.OrganizationalUnit, []string{`{{ .Token }} "x"`}) {
		t.Errorf("the subject is %s", s)
	}
	for _, c := range []*x509.Certificate{after, leaf} {
		if c.KeyUsage != before.KeyUsage || !slices.Equal(c.ExtKeyUsage, before.ExtKeyUsage) || c.IsCA || len(c.Extensions) != len(before.Extensions) {
			t.Errorf("the template changes more than the subject: %+v", c)
		}
	}
	if string(after.RawSubject) != string(before.RawSubject) {
		t.Errorf("without fields, the subject is %s, before it was %s", after.Subject, before.Subject)
	}
}

const subjectPolicy = `policy:
  allowSubjectFields: [organizations, organizationalUnits]
  validations:
  - expression: request.organizations.all(o, o == pod.namespace)
    message: not the organization of the namespace
  - expression: request.organizationalUnits.size() < 3
`

// A pod gets its subject fields with and without a registration authority, and keeps them
// at a renewal. Fields that the policy denies mount nothing.
func TestSubjectFields(t *testing.T) {
	t.Parallel()
	ca := startCA(t)
	template, err := os.ReadFile("../../deploy/step-ca/subject.tpl")
	node.Must(t, err)
	node.Must(t, ca.Change(func(p *provisioner.JWK) {
		p.Options = &provisioner.Options{X509: &provisioner.X509Options{Template: string(template)}}
	}))
	for mode, start := range map[string]func(*testing.T) (n *node.Node, admit func(node.Pod)){
		"node": func(t *testing.T) (*node.Node, func(node.Pod)) {
			n := node.New(t, binary, ca)
			n.ChangeConfig("issuers:", subjectPolicy+"issuers:")
			n.Start()
			return n, func(node.Pod) {}
		},
		"ra": func(t *testing.T) (*node.Node, func(node.Pod)) {
			r := startAuthority(t, ca, 1, subjectPolicy)
			return r.newNode(), r.admit
		},
	} {
		t.Run(mode, func(t *testing.T) {
			n, admit := start(t)
			p := node.Pod{Name: "web-0", Attributes: map[string]string{
				"service-names": "web", "duration": "12s", "organizations": "${POD_NAMESPACE}", "organizational-units": "Web, Api",
			}}
			admit(p)
			n.Publish(p)
			defer n.Unpublish(p)
			first := read(t, n.Target(p)).leaf()
			node.Eventually(t, time.Minute, "a renewal", func() bool { return !read(t, n.Target(p)).leaf().Equal(first) })
			for _, leaf := range []*x509.Certificate{first, read(t, n.Target(p)).leaf()} {
				if s := leaf.Subject; !slices.Equal(s.Organization, []string{"shop"}) || len(s.OrganizationalUnit) != 2 || len(s.Names) != 4 {
					t.Errorf("the subject is %s", s)
				}
			}
			for attribute, denied := range map[string]struct{ value, want string }{
				"organizations": {"pay", "not the organization of the namespace"},
				"countries":     {"DE", `country "DE" is not allowed: the policy allows no countries (the cluster's administrator can allow it: policy.allowSubjectFields: [countries]`},
				"template-data": {`{"subject2": {{}}`, "template-data: "},
				"provinces":     {"{{ .Token }}", `province "{{ .Token }}" is not allowed`},
				"postal-codes":  {strings.Repeat("1", 41), "postal-codes: "},
			} {
				q := node.Pod{Name: "evil-" + attribute, Attributes: map[string]string{"service-names": "web", attribute: denied.value}}
				admit(q)
				_, err := n.NodePublishVolume(t.Context(), n.MustRequest(q))
				if err == nil || !strings.Contains(err.Error(), denied.want) {
					t.Errorf("%s: %v", attribute, err)
				}
				if slices.Contains(n.Mounts(), n.Target(q)) {
					t.Errorf("%s: the volume is mounted", attribute)
				}
			}
			data := node.Pod{Name: "data-0", Attributes: map[string]string{"service-names": "web", "template-data": `{"organization": "pay"}`}}
			admit(data)
			if _, err := n.NodePublishVolume(t.Context(), n.MustRequest(data)); err == nil || !strings.Contains(err.Error(), "template data is not allowed") {
				t.Errorf("template data: %v", err)
			}
		})
	}
}
