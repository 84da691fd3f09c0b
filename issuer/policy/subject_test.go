package policy

import (
	"strings"
	"testing"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// subjectRequest is the test's valid request with a subject field and template data.
func subjectRequest(t *testing.T, key, value, data string) issuer.Request {
	t.Helper()
	req, err := testRequest().parse()
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range names.SubjectFields() {
		if field.Key == key {
			*field.Of(&req.Subject) = names.Must(names.ParseAll(field.Parse, strings.Split(value, ",")...))
		}
	}
	if data != "" {
		req.TemplateData = names.Must(issuer.ParseTemplateData(data))
	}
	return req
}

// A policy that was written before there were subject fields and template data does not
// allow them, nor does the default policy.
func TestSubjectIsDeniedByDefault(t *testing.T) {
	for name, validations := range map[string][]Validation{"default": nil, "own": {{Expression: "true"}}} {
		c := testConfig(validations...)
		c.Issuer = "edge"
		p := newPolicy(t, c)
		for _, field := range names.SubjectFields() {
			err := p.Check(t.Context(), testPod(), subjectRequest(t, field.Key, "DE", ""))
			want := "denied: " + field.Name + ` "DE" is not allowed: the policy allows no ` + field.Key + " (the cluster's administrator can allow it: policy.allowSubjectFields: [" +
				field.Key + "] or issuers.edge.policy.allowSubjectFields: [" + field.Key + "]; see docs/subject.md)"
			if err == nil || err.Error() != want {
				t.Errorf("%s policy: got %v\nwant %s", name, err, want)
			}
		}
		err := p.Check(t.Context(), testPod(), subjectRequest(t, "", "", "{}"))
		if err == nil || !strings.HasPrefix(err.Error(), "denied: template data is not allowed (the cluster's administrator can allow it: policy.allowTemplateData: true or ") {
			t.Errorf("%s policy: %v", name, err)
		}
	}
}

// No user is sent to the administrator for an organization that no policy can allow.
func TestReservedOrganizationWithoutAdvice(t *testing.T) {
	err := newPolicy(t, testConfig()).Check(t.Context(), testPod(), subjectRequest(t, "organizations", "system:masters", ""))
	if want := `denied: the organization "system:masters" is reserved: the API server may take it for a group of Kubernetes; use another one`; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

// Validations see the fields and the data that the configuration allows.
func TestValidationsOfSubjects(t *testing.T) {
	for _, test := range []struct {
		expression       string
		key, value, data string
		denied           bool
	}{
		{"request.organizations.all(o, o == pod.namespace)", "organizations", "prod", "", false},
		{"request.organizations.all(o, o == pod.namespace)", "organizations", "prod,other", "", true},
		{"request.organizations.all(o, o in ['Acme', 'Acme ' + pod.namespace])", "organizations", "Acme prod", "", false},
		{"request.organizationalUnits == ['Web']", "organizationalUnits", "Web", "", false},
		{"request.countries == ['DE', 'AT']", "countries", "DE,AT", "", false},
		{"request.provinces == ['Bayern']", "provinces", "Bayern", "", false},
		{"request.localities == ['München']", "localities", "München", "", false},
		{"request.streetAddresses == ['Ring 1']", "streetAddresses", "Ring 1", "", false},
		{"request.postalCodes == ['80331']", "postalCodes", "80331", "", false},
		{"request.templateData.team == pod.namespace", "", "", `{"team": "prod"}`, false},
		{"request.templateData.team == pod.namespace", "", "", `{"team": "other"}`, true},
		{"request.templateData.team == pod.namespace", "", "", `{"team": ["prod"]}`, true},
		{"request.templateData.team == pod.namespace", "", "", `{}`, true}, // cannot be evaluated
		{"!has(request.templateData.admin)", "", "", `{"team": "prod"}`, false},
		{"!has(request.templateData.admin)", "", "", `{"admin": null}`, true},
		{"request.templateData.all(key, key in ['team', 'level'])", "", "", `{"team": "prod", "level": 3}`, false},
		{"request.templateData.all(key, key in ['team', 'level'])", "", "", `{"team": "prod", "x": 3}`, true},
		{"request.templateData.level <= 3", "", "", `{"level": 3}`, false},
		{"request.templateData.level <= 3", "", "", `{"level": 3.01}`, true},
		{"request.templateData.level <= 3", "", "", `{"level": "1"}`, true},
		{"request.templateData.a.b[1] == 'x'", "", "", `{"a": {"b": [null, "x"]}}`, false},
		{"request.templateData.size() == 0 && request.organizations.size() == 0", "", "", "", false},
		{"request.templateData.text.matches('^[a-z]+$')", "", "", `{"text": "` + strings.Repeat("a", 4000) + `"}`, false},
	} {
		c := testConfig(Validation{Expression: test.expression})
		if c.AllowTemplateData = test.data != ""; test.key != "" {
			c.AllowSubjectFields = []string{test.key}
		}
		err := newPolicy(t, c).Check(t.Context(), testPod(), subjectRequest(t, test.key, test.value, test.data))
		if test.denied != (err != nil) || err != nil && issuer.OutcomeOf(err) != issuer.Denied {
			t.Errorf("%s for %s=%q, %s: %v", test.expression, test.key, test.value, test.data, err)
		}
	}
}

// No validation allows the groups of Kubernetes, nor more values than a certificate has.
func TestSubjectsThatNoPolicyAllows(t *testing.T) {
	c := testConfig(Validation{Expression: "request.organizations.size() > 0"})
	c.AllowSubjectFields = []string{"organizations"}
	for value, want := range map[string]string{
		"Acme,system:masters":    `the organization "system:masters" is reserved`,
		"SYSTEM:nodes":           `the organization "SYSTEM:nodes" is reserved`,
		"kubeadm:cluster-admins": `the organization "kubeadm:cluster-admins" is reserved`,
		strings.Repeat("a,", names.MaxSubjectValues) + "a": "33 values of subject fields are too many",
	} {
		if err := newPolicy(t, c).Check(t.Context(), testPod(), subjectRequest(t, "organizations", value, "")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", value, err)
		}
	}
	if err := newPolicy(t, c).Check(t.Context(), testPod(), subjectRequest(t, "organizations", "systems", "")); err != nil {
		t.Error(err)
	}
}

func TestUnknownSubjectFields(t *testing.T) {
	c := testConfig(Validation{Expression: "request.organizations.size() > 0"})
	c.AllowSubjectFields = []string{"organizations", "organization"}
	const want = `allowSubjectFields[1]: "organization" is not a subject field; these are: organizations, organizationalUnits, countries, provinces, localities, streetAddresses, postalCodes`
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// The default policy, and an own policy that says nothing about a field, do not become a
// policy that allows any value of it.
func TestValidationsMustMentionSubjects(t *testing.T) {
	fields := func(c *Config) { c.AllowSubjectFields = []string{"countries", "organizations"} }
	data := func(c *Config) { c.AllowTemplateData = true }
	const about = "allowSubjectFields[1]: no validation mentions request.organizations, so any pod could have any value; add one, such as request.organizations.all(v, v == pod.namespace)"
	for _, test := range []struct {
		change      func(*Config)
		expressions []string
		want        string
	}{
		{fields, nil, "allowSubjectFields[0]: no validation mentions request.countries"},
		{fields, []string{"true"}, "allowSubjectFields[0]: no validation mentions request.countries"},
		{fields, []string{"request.countries.size() < 2"}, about},
		{fields, []string{"request.countries.size() < 2 // request.organizations == ['Acme']"}, about},
		{fields, []string{"request.countries.size() < 2 && 'request.organizations' != ''"}, about},
		{fields, []string{"request.countries.size() < 2 && pod.name != request . organizations[0]"}, ""},
		{fields, []string{"request.countries.size() < 2", "request.organizations == ['Acme']"}, ""},
		{data, nil, "allowTemplateData: no validation mentions request.templateData, so any pod could have any data; add one, such as request.templateData.all(key, key == 'team')"},
		{data, []string{"request.templateData.all(key, key == 'team')"}, ""},
	} {
		var validations []Validation
		for _, expression := range test.expressions {
			validations = append(validations, Validation{Expression: expression})
		}
		c := testConfig(validations...)
		test.change(&c)
		if _, err := New(c); test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%q: got %v, want %s", test.expressions, err, test.want)
		}
	}
}

// A validation of template data is bounded like all others. One that looks at each value is
// not refused: the JSON is short.
func TestCostOfTemplateData(t *testing.T) {
	const loops = "request.templateData.all(a, request.templateData.all(b, request.templateData.all(c, a != b || b != c)))"
	if _, err := New(testConfig(Validation{Expression: loops})); err == nil || !strings.Contains(err.Error(), "may cost up to") {
		t.Errorf("%s: %v", loops, err)
	}
	const each = "request.templateData.all(key, key in ['team', 'role'] && request.templateData[key].matches('^[a-z]*$'))"
	c := testConfig(Validation{Expression: each})
	c.AllowTemplateData = true
	for data, denied := range map[string]bool{`{"team":"shop"}`: false, `{"team":"Shop"}`: true, `{"x":"shop"}`: true, `{"team":1}`: true} {
		if err := newPolicy(t, c).Check(t.Context(), testPod(), subjectRequest(t, "", "", data)); denied != (err != nil) {
			t.Errorf("%s: %v", data, err)
		}
	}
}
