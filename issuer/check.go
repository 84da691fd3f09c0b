package issuer

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flexstack/step-csi/issuer/chain"
	"github.com/flexstack/step-csi/issuer/clock"
	"github.com/flexstack/step-csi/issuer/names"
)

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// errNoChain is the error for a certificate that no known root signed; a new root may
// have.
var errNoChain = errors.New("no chain to a root of the CA")

// check compares the CA's answer with the request and returns the verified chain. If a
// certificate of the CA has expired or is not valid yet, the outcome is Unavailable.
func check(answer, roots []*x509.Certificate, req Request, public crypto.PublicKey, asked time.Time) (chain.Chain, error) {
	if len(answer) == 0 {
		return chain.Chain{}, errors.New("the answer contains no certificate")
	}
	leaf := answer[0]
	if err := errors.Join(
		checkKey(leaf, public),
		checkNames(leaf, req),
		checkUsage(leaf),
	); err != nil {
		return chain.Chain{}, err
	}
	if err := checkValidity(leaf, req.Duration, asked); err != nil {
		return chain.Chain{}, err
	}
	now := time.Now()
	if leaf.NotBefore.After(now) {
		now = leaf.NotBefore // the CA's clock is ahead, within clock.Tolerance
	}
	c, err := verify(answer, roots, now)
	if _, ok := errors.AsType[*chain.ValidityError](err); ok {
		err = fmt.Errorf("%w: peers would reject the certificate: %w; replace that certificate at the CA, or correct the clock of this machine", Unavailable, err)
	}
	return c, err
}

// verify verifies the chain, leaf first. The error is a *chain.ValidityError, or wraps
// errNoChain. The CA's template decides on the extended key usages.
func verify(certificates, roots []*x509.Certificate, now time.Time) (chain.Chain, error) {
	c, err := chain.Verify(certificates, roots, now, x509.ExtKeyUsageAny)
	if _, ok := errors.AsType[*chain.ValidityError](err); err != nil && !ok {
		err = fmt.Errorf("%w: %w", errNoChain, err)
	}
	return c, err
}

func checkKey(leaf *x509.Certificate, public crypto.PublicKey) error {
	key, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(leaf.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	return nil
}

// checkNames requires exactly the requested names. The common name may be
// missing, because a template at the CA can leave it out, but not differ.
func checkNames(leaf *x509.Certificate, req Request) error {
	if err := errors.Join(
		sameNames("DNS names", leaf.DNSNames, names.Texts(req.DNSNames)),
		sameNames("IP addresses", names.Texts(leaf.IPAddresses), names.Texts(req.IPAddresses)),
		sameNames("URIs", names.Texts(leaf.URIs), names.Texts(req.URIs)),
		sameNames("e-mail addresses", leaf.EmailAddresses, names.Texts(req.EmailAddresses)),
	); err != nil {
		return err
	}
	if cn := leaf.Subject.CommonName; cn != "" && cn != req.CommonName.String() {
		return fmt.Errorf("the common name is %q instead of %q", cn, req.CommonName)
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
			return errors.New("the subject alternative names cannot be parsed")
		}
		if len(all) != known {
			return errors.New("there are subject alternative names of a type that was not requested")
		}
	}
	return nil
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

// checkValidity accepts a shorter lifetime than requested, because the CA decides,
// but not a longer one, nor a certificate that has expired or becomes valid much later.
func checkValidity(leaf *x509.Certificate, duration time.Duration, asked time.Time) error {
	switch now := time.Now(); {
	case !leaf.NotAfter.After(now):
		return validityError(fmt.Sprintf("the certificate expired at %s, and the clock of this machine shows %s",
			leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)))
	case leaf.NotBefore.After(asked.Add(clock.Tolerance)):
		return fmt.Errorf("%w: it is valid from %s on, in %s by the clock of this machine", errNotYet,
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotBefore.Sub(now).Round(time.Second))
	case leaf.NotAfter.After(asked.Add(duration + clock.Tolerance)):
		return validityError(fmt.Sprintf("the certificate is valid until %s, longer than the requested %s",
			leaf.NotAfter.UTC().Format(time.RFC3339), duration))
	}
	return nil
}
