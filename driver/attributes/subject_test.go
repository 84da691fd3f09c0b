package attributes_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/flexstack/step-csi/driver/attributes"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

func subjectValues(parse func(string) (names.SubjectValue, error), texts ...string) []names.SubjectValue {
	return names.Must(names.ParseAll(parse, texts...))
}

func templateData(text string) issuer.TemplateData {
	return names.Must(issuer.ParseTemplateData(text))
}

// fullSubject is the subject of fullRequest.
func fullSubject() names.Subject {
	return names.Subject{
		Organizations:       subjectValues(names.ParseOrganization, "Acme", "shop"),
		OrganizationalUnits: subjectValues(names.ParseOrganization, "Web"),
		Countries:           subjectValues(names.ParseCountry, "DE"),
		Provinces:           subjectValues(names.ParseProvince, "Bayern"),
		Localities:          subjectValues(names.ParseLocality, "München"),
		StreetAddresses:     subjectValues(names.ParseStreetAddress, "Ring 1"),
		PostalCodes:         subjectValues(names.ParsePostalCode, "80331"),
	}
}

// subjectAttributes returns the values of a subject by their attributes.
func subjectAttributes(s names.Subject) map[string][]names.SubjectValue {
	return map[string][]names.SubjectValue{
		"organizations": s.Organizations, "organizational-units": s.OrganizationalUnits, "countries": s.Countries,
		"provinces": s.Provinces, "localities": s.Localities, "street-addresses": s.StreetAddresses, "postal-codes": s.PostalCodes,
	}
}

// subjectCases are values of one attribute, each with the values of the subject, separated
// by "|", with the template data, or with a part of the error.
var subjectCases = []struct{ key, value, want, wrong string }{
	{"organizations", "Acme", "Acme", ""},
	{"organizations", " Acme GmbH & Co. KG ,\tAcme,Acme", "Acme GmbH & Co. KG|Acme", ""},
	{"organizations", "team-${POD_NAMESPACE}", "team-shop", ""},
	{"organizations", "Ünïcode {{ .Token }} \"x\"", "Ünïcode {{ .Token }} \"x\"", ""},
	{"organizations", "Acme\u3164", "", `organizations: "Acme\u3164" contains characters that are not visible`}, // HANGUL FILLER, a letter
	{"organizations", "Ac\u034fme", "", `organizations: "Ac\u034fme" contains characters that are not visible`}, // COMBINING GRAPHEME JOINER, a mark
	{"organizations", "Acme\u2800", "", `organizations: "Acme\u2800" contains characters that are not visible`}, // BRAILLE PATTERN BLANK, a symbol
	{"organizations", "Acme\ufe0f", "", `organizations: "Acme\ufe0f" contains characters that are not visible`}, // VARIATION SELECTOR-16, a mark
	{"organizations", "株式会社 e\u0301", "株式会社 e\u0301", ""},
	{"organizations", strings.Repeat("a", 64), strings.Repeat("a", 64), ""},
	{"organizations", strings.Repeat("a", 65), "", "does not have 1 to 64 bytes (X.520)"},
	{"organizations", "", "", "organizations: the value is empty"},
	{"organizations", "a,,b", "", `organizations: "a,,b" has an empty part; leave out the comma`},
	{"organizations", "${SECRET}", "", `organizations: "${SECRET}": a $ must begin one of ${POD_NAME}`},
	{"organizations", "a\nb", "", `organizations: "a\nb" contains characters that are not printable`},
	{"organizations", "a\u200bb", "", "not printable"},
	{"organizations", "a\u00a0b", "", "not printable"},
	{"organizations", "a\xffb", "", "not printable"},
	{"organizations", "a\x00", "", "not printable"},
	{"organizations", "a  b", "", `organizations: "a  b": leave out the blanks at the ends, and write single blanks`},
	{"organizations", numbered(33), "", "33 values of subject fields are too many for one certificate; the limit is 32"},
	{"organizational-units", "Web,Shop", "Web|Shop", ""},
	{"organizational-units", strings.Repeat("ü", 33), "", "1 to 64 bytes"},
	{"countries", "DE,AT", "DE|AT", ""},
	{"countries", "de", "", `countries: "de" is not a country code of two upper-case letters (ISO 3166), such as DE`},
	{"countries", "Germany", "", "is not a country code"},
	{"countries", "D\n", "", "is not a country code"},
	{"provinces", strings.Repeat("p", 128), strings.Repeat("p", 128), ""},
	{"provinces", strings.Repeat("p", 129), "", "provinces:"},
	{"localities", strings.Repeat("l", 129), "", "localities:"},
	{"street-addresses", strings.Repeat("s", 129), "", "street-addresses:"},
	{"postal-codes", "80331", "80331", ""},
	{"postal-codes", strings.Repeat("1", 41), "", "1 to 40 bytes"},

	{"template-data", `{"b": [1, 2.5, true, null, {"c": "{{ .Token }} <&>"}], "a": ""}`, `{"a":"","b":[1,2.5,true,null,{"c":"{{ .Token }} <&>"}]}`, ""},
	{"template-data", `{}`, `{}`, ""},
	{"template-data", `{"sub": {"subject": "x"}}`, `{"sub":{"subject":"x"}}`, ""},
	{"template-data", `{"n": -9007199254740991}`, `{"n":-9007199254740991}`, ""},
	{"template-data", `{"n": 9007199254740993}`, "", `the number "9007199254740993" is too large; write it as a text, in quotes`}, // rounded to …992
	{"template-data", `{"n": -9007199254740992}`, "", `the number "-9007199254740992" is too large`},
	{"template-data", `{"a": "${POD_NAME} $5"}`, `{"a":"${POD_NAME} $5"}`, ""}, // no variables
	{"template-data", `{"n": 9007199254740993000}`, "", `the number "9007199254740993000" is too large; write it as a text, in quotes`},
	{"template-data", `{"n": 1e999}`, "", "is too large"},
	{"template-data", `{"n": NaN}`, "", `template-data: "{\"n\": NaN}": invalid character`},
	{"template-data", `{"n": 01}`, "", "invalid character"},
	{"template-data", `{"a": 1, "a": 2}`, "", `the key "a" occurs twice`},
	{"template-data", `{"a": 1, "\u0061": 2}`, "", `the key "a" occurs twice`},
	{"template-data", `{"a": {"b": 1, "b": 1}}`, "", `the key "b" occurs twice`},
	{"template-data", `{"a": 1`, "", "the JSON ends too early; write a JSON object"},
	{"template-data", `{"a": 1}{`, "", "there is more after the first value"},
	{"template-data", `{"a": 1,}`, "", "invalid character"},
	{"template-data", `[1]`, "", "the JSON is not an object"},
	{"template-data", `null`, "", "the JSON is not an object"},
	{"template-data", `"text"`, "", "the JSON is not an object"},
	{"template-data", `team=shop`, "", `such as {"team": "shop"}`},
	{"template-data", "{\"a\": \"\xff\"}", "", "not valid UTF-8"},
	{"template-data", `{"subject": {"organization": ["root"]}}`, "", `the key "subject" is reserved for the subject fields, which have attributes of their own`},
	{"template-data", `{"Subject": 1}`, "", `the key "Subject" is reserved`},
	{"template-data", `{"sub\u006aect": 1}`, "", `the key "subject" is reserved`},
	{"template-data", nested(7), strings.ReplaceAll(nested(7), " ", ""), ""},
	{"template-data", nested(8), "", "objects and lists are more than 8 levels deep"},
	{"template-data", nested(1500), "", "objects and lists are more than 8 levels deep"},
	{"template-data", `{"a": "` + strings.Repeat("x", 4096) + `"}`, "", "the JSON has 4105 bytes; the limit is 4096"},
	{"template-data", `{"a": [1` + strings.Repeat(",1e15", 800) + `]}`, "", "bytes when it is encoded again; the limit is 4096"},
}

// numbered returns as many different values.
func numbered(n int) string {
	var all []string
	for i := range n {
		all = append(all, "o"+strings.Repeat("i", i))
	}
	return strings.Join(all, ",")
}

// nested returns an object with as many lists in each other.
func nested(n int) string {
	return `{"a": ` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}"
}

func TestSubjectAndTemplateData(t *testing.T) {
	for _, c := range subjectCases {
		values := map[string]string{c.key: c.value}
		got, err := attributes.Parse(values, pod, "", config())
		if c.wrong != "" {
			wantError(t, c.key+"="+c.value, err, c.wrong)
			continue
		}
		text := strings.Join(names.Texts(subjectAttributes(got.Request.Subject)[c.key]), "|")
		if c.key == "template-data" {
			text = got.Request.TemplateData.String()
		}
		if err != nil || text != c.want {
			t.Errorf("%s=%.90q: %q, %v, want %q", c.key, c.value, text, err, c.want)
		}
		checkSubject(t, got.Request)
		checkNormalize(t, values, func(values map[string]string) (attributes.Attributes, error) {
			return attributes.Parse(values, pod, "", config())
		})
	}
}

// checkSubject checks that the template of the CA reads exactly what the policy sees.
func checkSubject(t *testing.T, r issuer.Request) {
	t.Helper()
	for key, list := range subjectAttributes(r.Subject) {
		for _, value := range names.Texts(list) {
			if value == "" || len(value) > 128 || !names.IsPrintable(value) || strings.TrimSpace(value) != value {
				t.Errorf("%s has the value %q", key, value)
			}
		}
	}
	input := r.TemplateInput()
	if len(r.Subject.Values()) == 0 && r.TemplateData == (issuer.TemplateData{}) {
		if input != nil {
			t.Errorf("the template reads %s, but nothing was requested", input)
		}
		return
	}
	var read map[string]any
	if err := json.Unmarshal(input, &read); err != nil || !utf8.Valid(input) {
		t.Fatalf("the template reads %s: %v", input, err)
	}
	subject, _ := read["subject"].(map[string]any)
	if delete(read, "subject"); !reflect.DeepEqual(read, r.TemplateData.Object()) {
		t.Errorf("the template reads %v, the policy %v", read, r.TemplateData.Object())
	}
	for _, field := range names.SubjectFields() {
		var want any
		if values := *field.Of(&r.Subject); len(values) > 0 {
			var texts []any
			for _, text := range names.Texts(values) {
				texts = append(texts, text)
			}
			want = texts
		}
		if !reflect.DeepEqual(subject[field.Template], want) {
			t.Errorf("the template reads the %s %v, the policy %v", field.Name, subject[field.Template], want)
		}
	}
	if again, err := issuer.ParseTemplateData(r.TemplateData.String()); r.TemplateData != (issuer.TemplateData{}) && (err != nil || again != r.TemplateData) {
		t.Errorf("%s is read again as %s, %v", r.TemplateData, again, err)
	}
}
