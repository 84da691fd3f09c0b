package integration

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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
