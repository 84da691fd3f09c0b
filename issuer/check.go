package issuer

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// clockSkew is how far the authority's clock may be ahead of or behind ours.
// step-ca itself backdates by a minute for the same reason.
const clockSkew = 5 * time.Minute

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// check holds an authority's answer against what was asked for and returns the
// verified chain without its root: leaf first, each certificate signed by the
// next. Certificates in the answer that are no part of that chain are dropped.
func check(answer, roots []*x509.Certificate, req Request, public crypto.PublicKey, asked time.Time) ([]*x509.Certificate, error) {
	if len(answer) == 0 {
		return nil, errors.New("no certificate in it")
	}
	leaf := answer[0]
	if err := errors.Join(
		checkKey(leaf, public),
		checkNames(leaf, req),
		checkUsage(leaf),
		checkValidity(leaf, req.Duration, asked),
	); err != nil {
		return nil, err
	}
	return chainOf(answer, roots)
}

func checkKey(leaf *x509.Certificate, public crypto.PublicKey) error {
	key, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(leaf.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	return nil
}

// checkNames demands exactly the requested names. The common name may be
// missing, since a template at the CA may leave it out, but not be another.
func checkNames(leaf *x509.Certificate, req Request) error {
	var got, want []string
	for _, ip := range leaf.IPAddresses {
		got = append(got, ip.String())
	}
	for _, ip := range req.IPAddresses {
		want = append(want, ip.String())
	}
	if err := errors.Join(
		sameNames("DNS names", leaf.DNSNames, req.DNSNames),
		sameNames("IP addresses", got, want),
		sameNames("URIs", texts(leaf.URIs), texts(req.URIs)),
		sameNames("e-mail addresses", leaf.EmailAddresses, req.EmailAddresses),
	); err != nil {
		return err
	}
	if cn := leaf.Subject.CommonName; cn != "" && cn != req.CommonName {
		return fmt.Errorf("the common name is %q instead of %q", cn, req.CommonName)
	}
	return checkNoOtherNames(leaf)
}

// checkNoOtherNames refuses names of the types that crypto/x509 does not
// parse, such as an otherName with a user principal name.
func checkNoOtherNames(leaf *x509.Certificate) error {
	known := len(leaf.DNSNames) + len(leaf.IPAddresses) + len(leaf.URIs) + len(leaf.EmailAddresses)
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &names); err != nil || len(rest) > 0 {
			return errors.New("the subject alternative names cannot be read")
		}
		if len(names) != known {
			return errors.New("there are subject alternative names of a type that nobody asked for")
		}
	}
	return nil
}

func texts(uris []*url.URL) []string {
	s := make([]string, len(uris))
	for i, u := range uris {
		s[i] = u.String()
	}
	return s
}

func sameNames(what string, got, want []string) error {
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
		return fmt.Errorf("the %s are %q instead of %q", what, got, want)
	}
	return nil
}

func checkUsage(leaf *x509.Certificate) error {
	if leaf.IsCA {
		return errors.New("it is a CA certificate")
	}
	if leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New("its key usage lets it sign certificates or revocation lists")
	}
	return nil
}

// checkValidity accepts a shorter lifetime than the requested one, since the
// CA decides, but neither a longer one nor one that is over or not yet begun.
func checkValidity(leaf *x509.Certificate, duration time.Duration, asked time.Time) error {
	switch {
	case !leaf.NotAfter.After(time.Now()):
		return fmt.Errorf("it expired at %s (is the clock of the node or of the CA wrong?)", leaf.NotAfter.Format(time.RFC3339))
	case leaf.NotBefore.After(asked.Add(clockSkew)):
		return fmt.Errorf("it is valid only from %s (is the clock of the node or of the CA wrong?)", leaf.NotBefore.Format(time.RFC3339))
	case leaf.NotAfter.After(asked.Add(duration + clockSkew)):
		return fmt.Errorf("it is valid until %s, longer than the %s asked for", leaf.NotAfter.Format(time.RFC3339), duration)
	}
	return nil
}
