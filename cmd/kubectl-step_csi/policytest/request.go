package policytest

import (
	"strings"
	"time"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// Request is what the pod asks for after defaults.
type Request struct {
	CommonName     string   `json:"commonName"`
	DNSNames       []string `json:"dnsNames,omitempty"`
	IPAddresses    []string `json:"ipAddresses,omitempty"`
	URIs           []string `json:"uris,omitempty"`
	EmailAddresses []string `json:"emailAddresses,omitempty"`
	// Subject has the other fields of the subject, by attribute.
	Subject      map[string][]string `json:"subject,omitempty"`
	TemplateData any                 `json:"templateData,omitempty"`
	Duration     string              `json:"duration"`
	KeyType      string              `json:"keyType"`
}

func requestOf(r issuer.Request) *Request {
	made := &Request{
		CommonName: r.CommonName.String(), DNSNames: names.Texts(r.DNSNames), IPAddresses: names.Texts(r.IPAddresses),
		URIs: names.Texts(r.URIs), EmailAddresses: names.Texts(r.EmailAddresses),
		Subject: map[string][]string{}, Duration: shortDuration(r.Duration), KeyType: string(r.KeyType),
	}
	for _, field := range names.SubjectFields() {
		if values := *field.Of(&r.Subject); len(values) > 0 {
			made.Subject[field.Key] = names.Texts(values)
		}
	}
	if r.TemplateData != (issuer.TemplateData{}) {
		made.TemplateData = r.TemplateData.Object()
	}
	return made
}

// shortDuration leaves out the minutes and seconds that are zero.
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
