package ra

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/ra/rapb"
)

func values(parse func(string) (names.SubjectValue, error), texts ...string) []names.SubjectValue {
	return names.Must(names.ParseAll(parse, texts...))
}

// The registration authority reads the subject fields that the node plugin sends.
func TestReadSubjectReversesSetSubject(t *testing.T) {
	whole := issuer.Request{
		Subject: names.Subject{
			Organizations:       values(names.ParseOrganization, "Acme", "Shop"),
			OrganizationalUnits: values(names.ParseOrganization, "Web"),
			Countries:           values(names.ParseCountry, "DE"),
			Provinces:           values(names.ParseProvince, "Bayern"),
			Localities:          values(names.ParseLocality, "München"),
			StreetAddresses:     values(names.ParseStreetAddress, "Ring 1"),
			PostalCodes:         values(names.ParsePostalCode, "80331"),
		},
		TemplateData: names.Must(issuer.ParseTemplateData(`{"team": "shop"}`)),
	}
	for _, want := range []issuer.Request{{}, whole, {Subject: whole.Subject}, {TemplateData: whole.TemplateData}} {
		message := &rapb.SignRequest{}
		setSubject(message, want)
		wire, err := proto.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		if empty := len(want.Subject.Values()) == 0 && want.TemplateData == (issuer.TemplateData{}); empty != (len(wire) == 0) {
			t.Errorf("a message of %d bytes for %+v", len(wire), want)
		}
		read, got := &rapb.SignRequest{}, issuer.Request{}
		if err := proto.Unmarshal(wire, read); err != nil {
			t.Fatal(err)
		}
		if err := ReadSubject(read, &got); err != nil || string(got.TemplateInput()) != string(want.TemplateInput()) {
			t.Errorf("got %s, %v, want %s", got.TemplateInput(), err, want.TemplateInput())
		}
	}
}

// The registration authority does not trust what a node sends.
func TestReadSubjectRefuses(t *testing.T) {
	for want, message := range map[string]*rapb.SignRequest{
		`organization: "a\nb" contains characters that are not printable`: {Subject: &rapb.Subject{Organizations: []string{"a\nb"}}},
		`country: "de" is not a country code`:                             {Subject: &rapb.Subject{Countries: []string{"de"}}},
		`postal code: ""`:                                                 {Subject: &rapb.Subject{PostalCodes: []string{""}}},
		"street address: 33 values; the limit is 32":                      {Subject: &rapb.Subject{StreetAddresses: slices.Repeat([]string{"s"}, 33)}},
		"the JSON has 4097 bytes; the limit is 4096":                      {TemplateData: strings.Repeat(" ", 4097)},
		"the JSON is not an object":                                       {TemplateData: "[]"},
		`the key "subject" is reserved`:                                   {TemplateData: `{"subject": {}}`},
		`the key "a" occurs twice`:                                        {TemplateData: `{"a": 1, "a": 2}`},
	} {
		if err := ReadSubject(message, &issuer.Request{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// earlier is a registration authority of a version that does not know subject fields.
type earlier struct {
	rapb.RegistrationAuthorityClient
}

func (earlier) Sign(context.Context, *rapb.SignRequest, ...grpc.CallOption) (*rapb.SignResponse, error) {
	return &rapb.SignResponse{}, nil
}

// A pod does not get a certificate for which an earlier registration authority has ignored
// the pod's template data.
func TestEarlierAuthorityIgnoresSubjects(t *testing.T) {
	s, err := New(Config{
		URL: "https://ra.invalid:8443", Fingerprint: strings.Repeat("84a0", 16), Issuer: "default",
		Token: func() ([]byte, error) { return []byte("a.b.c"), nil }, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.client = earlier{}
	key, err := issuer.Ed25519.Generate()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuer.NewCSR(issuer.Request{}, key)
	if err != nil {
		t.Fatal(err)
	}
	const want = "registration authority https://ra.invalid:8443: invalid answer: this version of the registration authority ignores subject fields and template data; " +
		"upgrade it, or leave these attributes out"
	for _, r := range []issuer.Request{
		{Subject: names.Subject{Countries: values(names.ParseCountry, "DE")}},
		{TemplateData: names.Must(issuer.ParseTemplateData(`{}`))},
	} {
		_, err := s.Sign(t.Context(), issuer.SigningRequest{
			Applicant: issuer.Applicant{Token: issuer.NewToken("a.b.c", time.Now().Add(time.Hour))}, Request: r, CSR: csr,
		})
		if issuer.OutcomeOf(err) != issuer.InvalidAnswer || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}
