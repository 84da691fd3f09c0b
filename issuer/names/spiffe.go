package names

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxTrustDomain is the limit of the SPIFFE ID specification, section 2.3, in
// bytes.
const maxTrustDomain = 255

// ParseTrustDomain parses the name of a SPIFFE trust domain, without the scheme.
func ParseTrustDomain(text string) (spiffeid.TrustDomain, error) {
	domain, err := spiffeid.TrustDomainFromString(text)
	// go-spiffe also accepts a whole SPIFFE ID, and has no limit.
	if err != nil || domain.Name() != text || len(text) > maxTrustDomain {
		return spiffeid.TrustDomain{}, fmt.Errorf(
			`%s is not a trust domain: use lower-case letters, digits, ".", "-" and "_", and at most %d bytes, such as cluster.local`, Quote(text), maxTrustDomain)
	}
	return domain, nil
}

func checkSPIFFEID(text string) error {
	id, err := spiffeid.FromString(text)
	if err == nil {
		_, err = ParseTrustDomain(id.TrustDomain().Name())
	}
	if err != nil {
		return fmt.Errorf("%s is not a SPIFFE ID such as spiffe://cluster.local/ns/shop/sa/web: %w", Quote(text), err)
	}
	return nil
}

// PodSPIFFEID returns the SPIFFE ID of a service account.
func PodSPIFFEID(domain spiffeid.TrustDomain, namespace, serviceAccount string) (URI, error) {
	id, err := spiffeid.FromSegments(domain, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return URI{}, fmt.Errorf("the SPIFFE ID of service account %s in namespace %s: %w", Quote(serviceAccount), Quote(namespace), err)
	}
	return ParseURI(id.String())
}
