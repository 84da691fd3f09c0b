package issuer

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flexstack/step-csi/issuer/names"
)

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// maxChanges bounds the changes in an error: a template can add any number of names.
const maxChanges = 5

// changes are what the CA made different from the request. At step-ca, only the X.509
// template of the provisioner can do that.
type changes []string

func (c *changes) add(format string, args ...any) { *c = append(*c, fmt.Sprintf(format, args...)) }

// compare adds the names of one type that are only in one of the lists.
func (c *changes) compare(kind string, got, want []string) {
	list := func(verb string, some, others []string) {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(some))) {
			if !slices.Contains(others, name) {
				c.add("%s %s %s", verb, kind, names.Quote(name))
			}
		}
	}
	list("added", got, want)
	list("removed", want, got)
}

func (c changes) err() error {
	if len(c) == 0 {
		return nil
	}
	shown := c
	if len(c) > maxChanges {
		shown = append(slices.Clone(c[:maxChanges]), fmt.Sprintf("made %d other changes", len(c)-maxChanges))
	}
	return fmt.Errorf("the provisioner's X.509 template %s; a certificate must have exactly the names that the pod may have: change the template at the CA, or request what it allows",
		strings.Join(shown, ", "))
}

// errNoSubject is the advice about a template that ignores what the pod requests.
var errNoSubject = errors.New("step-ca's default template ignores subject fields: give the provisioner the template of docs/subject.md")

// checkSubject requires exactly the requested subject fields if the pod requests any, or has
// data for the template, which could become subject fields. Otherwise, the template alone
// decides: an administrator may have written an organization into it.
func checkSubject(leaf *x509.Certificate, req Request) error {
	values := req.Subject.Values()
	if len(values) == 0 && req.TemplateData == (TemplateData{}) {
		return nil
	}
	var c changes
	missing := len(values) > 0
	known := 0
	for _, field := range names.SubjectFields() {
		got := field.In(leaf.Subject)
		c.compare(field.Name, got, names.Texts(*field.Of(&req.Subject)))
		known += len(got)
		missing = missing && len(got) == 0
	}
	if leaf.Subject.CommonName != "" {
		known++
	}
	// A second common name counts too: others may read another one than crypto/x509 does.
	if others := len(leaf.Subject.Names) - known; others > 0 {
		c.add("added %d subject fields that cannot be requested", others)
	}
	err := c.err()
	if missing {
		err = fmt.Errorf("%w (%w)", err, errNoSubject)
	}
	return err
}

// checkNames requires exactly the requested names. The common name may be
// missing, because a template at the CA can leave it out, but not differ.
func checkNames(leaf *x509.Certificate, req Request) error {
	var c changes
	c.compare("DNS name", leaf.DNSNames, names.Texts(req.DNSNames))
	c.compare("IP address", names.Texts(leaf.IPAddresses), names.Texts(req.IPAddresses))
	c.compare("URI", names.Texts(leaf.URIs), names.Texts(req.URIs))
	c.compare("e-mail address", leaf.EmailAddresses, names.Texts(req.EmailAddresses))
	switch got, want := leaf.Subject.CommonName, req.CommonName.String(); {
	case got == "" || got == want:
	case want == "":
		c.add("added the common name %s", names.Quote(got))
	default:
		c.add("changed the common name from %s to %s", names.Quote(want), names.Quote(got))
	}
	// crypto/x509 ignores names of other types, such as an otherName with a user
	// principal name.
	known := len(leaf.DNSNames) + len(leaf.IPAddresses) + len(leaf.URIs) + len(leaf.EmailAddresses)
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		var all []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &all); err != nil || len(rest) > 0 {
			c.add("added subject alternative names that cannot be parsed")
		} else if len(all) != known {
			c.add("added %d subject alternative names of a type that cannot be requested", len(all)-known)
		}
	}
	return c.err()
}

// checkOtherSubject rejects a leaf with the subject of a certificate of the CA: programs find
// issuers, and lists of revoked certificates, by their subject.
func checkOtherSubject(leaf *x509.Certificate, ofCA []*x509.Certificate) error {
	subject := leaf.Subject.String()
	for _, c := range ofCA {
		if subject != "" && c.IsCA && strings.EqualFold(c.Subject.String(), subject) {
			return fmt.Errorf("the certificate has the subject %s of a certificate of the CA; request another common name or other subject fields", names.Quote(subject))
		}
	}
	return nil
}

// checkUsage rejects what could sign certificates.
func checkUsage(leaf *x509.Certificate) error {
	const template = "the provisioner's X.509 template "
	if leaf.IsCA {
		return errors.New(template + "made it a CA certificate; remove isCA from basicConstraints in the template")
	}
	if leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New(template + "set a key usage that lets it sign certificates or revocation lists; remove certSign and crlSign from keyUsage in the template")
	}
	return nil
}
