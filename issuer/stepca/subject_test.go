package stepca_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/smallstep/certificates/authority/provisioner"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/test/embeddedca"
)

func values(parse func(string) (names.SubjectValue, error), texts ...string) []names.SubjectValue {
	return names.Must(names.ParseAll(parse, texts...))
}

// withSubject requests all subject fields, with values that look like templates and JSON.
func withSubject() issuer.Request {
	r := request()
	r.Subject = names.Subject{
		Organizations:       values(names.ParseOrganization, "Zeta", `{{ .Token }}`, "Acme GmbH & Co. KG <\"\\>"),
		OrganizationalUnits: values(names.ParseOrganization, `x"], "commonName": "admin", "a": ["`),
		Countries:           values(names.ParseCountry, "DE", "AT"),
		Provinces:           values(names.ParseProvince, "Bayern"),
		Localities:          values(names.ParseLocality, "München"),
		StreetAddresses:     values(names.ParseStreetAddress, "Ring 1"),
		PostalCodes:         values(names.ParsePostalCode, "80331"),
	}
	return r
}

// withTemplate gives the CA's provisioner the X.509 template.
func withTemplate(t *testing.T, ca *embeddedca.CA, text string) {
	t.Helper()
	must(t, ca.Change(func(p *provisioner.JWK) {
		p.Options = &provisioner.Options{X509: &provisioner.X509Options{Template: text}}
	}))
}

// subjectTemplate is the template of docs/subject.md; test/chart compares both.
func subjectTemplate(t *testing.T) string {
	t.Helper()
	template, err := os.ReadFile("../../deploy/step-ca/subject.tpl")
	must(t, err)
	return string(template)
}

// With the documented template, step-ca puts exactly the requested fields into the subject,
// whatever characters they have. The rest of the certificate is as without the template.
func TestSubjectTemplate(t *testing.T) {
	ca := startCA(t)
	withTemplate(t, ca, subjectTemplate(t))
	i := newIssuer(t, newSigner(t, configFor(ca)))
	for name, r := range map[string]issuer.Request{"all fields": withSubject(), "none": request(), "one": func() issuer.Request {
		r := request()
		r.KeyType = issuer.RSA2048
		r.Subject.OrganizationalUnits = values(names.ParseOrganization, "Web")
		return r
	}()} {
		r.TemplateData = names.Must(issuer.ParseTemplateData(`{"organization": ["Evil"], "commonName": "admin", "extraNames": [{"type": "2.5.4.5", "value": "1"}], "isCA": true}`))
		c, err := i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf := c.Leaf()
		for _, field := range names.SubjectFields() {
			got, want := field.In(leaf.Subject), names.Texts(*field.Of(&r.Subject))
			if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				t.Errorf("%s: the %s is %q, want %q", name, field.Name, got, want)
			}
		}
		if leaf.Subject.CommonName != "web.shop" || len(leaf.Subject.Names) != len(r.Subject.Values())+1 || len(leaf.ExtKeyUsage) != 2 || leaf.IsCA {
			t.Errorf("%s: the subject is %s, the usages are %v", name, leaf.Subject, leaf.ExtKeyUsage)
		}
	}
}

// An X5C provisioner passes the fields to its template, too.
func TestSubjectTemplateOfX5C(t *testing.T) {
	ca, pki := startX5C(t, func(p *provisioner.X5C) {
		p.Options = &provisioner.Options{X509: &provisioner.X509Options{Template: subjectTemplate(t)}}
	})
	files := newPair(t, pki, nil)
	c, err := newIssuer(t, newSigner(t, x5cConfig(ca, &files))).Issue(t.Context(), issuer.Applicant{}, withSubject(), issuer.PrivateKey{})
	if err != nil || len(c.Leaf().Subject.Names) != len(withSubject().Subject.Values())+1 {
		t.Errorf("got %v", err)
	}
}

// Without a template that reads the fields, and with one that gives others, the pod gets no
// certificate. The error says what to change.
func TestSubjectThatTheTemplateChanges(t *testing.T) {
	const naive = `{"subject": {"commonName": {{ toJson .Subject.CommonName }}, "organization": {{ toJson .Insecure.User.organization }}}, "sans": {{ toJson .SANs }}}`
	const smuggled = `{"subject": {"commonName": {{ toJson .Subject.CommonName }}, "extraNames": [{"type": "2.5.4.3", "value": {{ toJson .Insecure.User.name }}}]}, "sans": {{ toJson .SANs }}}`
	for name, test := range map[string]struct {
		template string
		change   func(*issuer.Request)
		want     string
	}{
		"the default template": {"", func(r *issuer.Request) { r.Subject.Organizations = values(names.ParseOrganization, "Acme") },
			`the provisioner's X.509 template removed organization "Acme"; a certificate must have exactly the names that the pod may have: change the template at the CA, ` +
				`or request what it allows (step-ca's default template ignores subject fields: give the provisioner the template of docs/subject.md)`},
		"fields through template data": {naive, func(r *issuer.Request) {
			r.TemplateData = names.Must(issuer.ParseTemplateData(`{"organization": "system:masters"}`))
		}, `template added organization "system:masters"`},
		"another common name through template data": {smuggled, func(r *issuer.Request) {
			r.TemplateData = names.Must(issuer.ParseTemplateData(`{"name": "admin"}`))
		}, `common name`},
		"a fixed organization, and a requested unit": {
			`{"subject": {"commonName": {{ toJson .Subject.CommonName }}, "organization": "Acme", "organizationalUnit": {{ toJson .Insecure.User.subject.organizationalUnit }}}, "sans": {{ toJson .SANs }}}`,
			func(r *issuer.Request) { r.Subject.OrganizationalUnits = values(names.ParseOrganization, "Web") },
			`template added organization "Acme"`},
	} {
		t.Run(name, func(t *testing.T) {
			ca := startCA(t)
			withTemplate(t, ca, test.template)
			r := request()
			test.change(&r)
			_, err := newIssuer(t, newSigner(t, configFor(ca))).Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
			if issuer.OutcomeOf(err) != issuer.InvalidAnswer || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

// A template of an administrator may add fields for pods that request none, and read the
// template data for something else than the subject.
func TestTemplatesOfAdministrators(t *testing.T) {
	ca := startCA(t)
	withTemplate(t, ca, `{"subject": {"commonName": {{ toJson .Subject.CommonName }}, "organization": "Acme"}, "sans": {{ toJson .SANs }}}`)
	c, err := newIssuer(t, newSigner(t, configFor(ca))).Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
	if err != nil || !slices.Equal(c.Leaf().Subject.Organization, []string{"Acme"}) {
		t.Errorf("a fixed organization: %v", err)
	}
	page, err := os.ReadFile("../../docs/subject.md")
	must(t, err)
	_, usages, _ := strings.Cut(string(page), "for clients only:\n\n```\n")
	usages, _, documented := strings.Cut(usages, "```")
	if !documented {
		t.Fatal("docs/subject.md has no example of template data")
	}
	withTemplate(t, ca, `{"subject": {{ toJson .Subject }}, "sans": {{ toJson .SANs }}, "keyUsage": ["digitalSignature"], `+usages+`}`)
	for data, want := range map[string]int{"": 2, `{}`: 2, `{"role": "client"}`: 1, `{"role": ["client"]}`: 2, `{"role": "\"}}{{ fail \"x\" }}"}`: 2} {
		r := request()
		if data != "" {
			r.TemplateData = names.Must(issuer.ParseTemplateData(data))
		}
		c, err = newIssuer(t, newSigner(t, configFor(ca))).Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
		if err != nil && !strings.Contains(data, "[") || err == nil && len(c.Leaf().ExtKeyUsage) != want {
			t.Errorf("template data %s: %v", data, err)
		}
	}
}

// A pod whose data makes the template fail gets no certificate, and it is no outage: the
// other pods get theirs.
func TestTemplateDataThatFails(t *testing.T) {
	for name, part := range map[string]string{
		"another type":          `"extKeyUsage": [{{ if eq .Insecure.User.role "server" }}"serverAuth"{{ else }}"clientAuth"{{ end }}]`,
		"a missing key":         `"extKeyUsage": [{{ toJson .Insecure.User.missing.key }}]`,
		"not of the right type": `"extKeyUsage": {{ toJson .Insecure.User.role }}`,
		"without toJson":        `"extKeyUsage": [{{ .Insecure.User.role }}]`,
		"not an OID":            `"extensions": [{"id": {{ toJson (index .Insecure.User.role 0) }}, "value": "x"}]`,
	} {
		ca := startCA(t)
		withTemplate(t, ca, `{"subject": {{ toJson .Subject }}, "sans": {{ toJson .SANs }}, `+part+`}`)
		r := request()
		r.TemplateData = names.Must(issuer.ParseTemplateData(`{"role": ["x"]}`))
		_, err := newIssuer(t, newSigner(t, configFor(ca))).Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
		if issuer.OutcomeOf(err) != issuer.InvalidAnswer || issuer.OutcomeOf(err).IsDown() || !strings.Contains(err.Error(), "may fail for the pod's subject fields or template data: the reason is in the CA's log") {
			t.Errorf("%s: %s: %v", name, issuer.OutcomeOf(err).Label(), err)
		}
	}
}

// A CA that fails before it signs is unavailable, also for a pod with subject fields: its
// template has not run.
func TestFailureBeforeTheTemplate(t *testing.T) {
	for _, path := range []string{"/provisioners", "/roots"} {
		for _, body := range []string{"", `{"status":500}`, `{"status":500,"message":"broken"}`} {
			ca := startCA(t)
			ca.Intercept(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !strings.HasSuffix(r.URL.Path, path) {
						next.ServeHTTP(w, r)
						return
					}
					w.WriteHeader(http.StatusInternalServerError)
					_, _ = io.WriteString(w, body)
				})
			})
			_, err := newIssuer(t, newSigner(t, configFor(ca))).Issue(t.Context(), issuer.Applicant{}, withSubject(), issuer.PrivateKey{})
			if issuer.OutcomeOf(err) != issuer.Unavailable || strings.Contains(err.Error(), "template") {
				t.Errorf("%s answers 500 with %q: %s: %v", path, body, issuer.OutcomeOf(err).Label(), err)
			}
		}
	}
}

// What the CA receives is what the policy has seen, and nothing for pods without it.
func TestTemplateDataOfARequest(t *testing.T) {
	ca := startCA(t)
	withTemplate(t, ca, subjectTemplate(t))
	var body []byte
	ca.Intercept(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				body, _ = io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
			}
			next.ServeHTTP(w, r)
		})
	})
	i := newIssuer(t, newSigner(t, configFor(ca)))
	_, err := i.Issue(t.Context(), issuer.Applicant{}, request(), issuer.PrivateKey{})
	if must(t, err); bytes.Contains(body, []byte("templateData")) {
		t.Errorf("the CA receives %s", body)
	}
	r := request()
	r.Subject.Organizations = values(names.ParseOrganization, "Acme")
	r.TemplateData = names.Must(issuer.ParseTemplateData(`{"team": "shop", "a": [1.0]}`))
	_, err = i.Issue(t.Context(), issuer.Applicant{}, r, issuer.PrivateKey{})
	if must(t, err); !bytes.Contains(body, []byte(`"templateData":{"a":[1],"subject":{"organization":["Acme"]},"team":"shop"}`)) {
		t.Errorf("the CA receives %s", body)
	}
}
