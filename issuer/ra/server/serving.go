package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// Serving is about the authority's own certificate.
type Serving struct {
	// Signer of the CA which node plugins trust.
	Signer issuer.Signer
	// Names are its DNS names. Node plugins call the authority by one of them.
	Names []string
	// Duration is its lifetime.
	Duration time.Duration
}

// maxCommonName is ub-common-name of RFC 5280, in bytes.
const maxCommonName = 64

// serving keeps the authority's own certificate, in memory.
type serving struct {
	issuer  *issuer.Issuer
	request issuer.Request
	current atomic.Pointer[tls.Certificate]
}

func newServing(c Serving) (*serving, error) {
	fits := func(name string) bool { return name != "" && len(name) <= maxCommonName }
	i := slices.IndexFunc(c.Names, fits)
	if i < 0 || c.Duration <= 0 {
		return nil, fmt.Errorf("names: there must be DNS names for the authority's own certificate, one of at most %d bytes among them", maxCommonName)
	}
	s := &serving{request: issuer.Request{
		CommonName: c.Names[i], DNSNames: c.Names, Duration: c.Duration, KeyType: issuer.ECDSAP256,
	}}
	var err error
	s.issuer, err = issuer.New(issuer.Config{Signer: c.Signer, Policy: s.onlyOwn})
	return s, err
}

// onlyOwn is the policy of an issuer that makes one certificate.
func (s *serving) onlyOwn(_ context.Context, _ issuer.Pod, req issuer.Request) error {
	if !slices.Equal(req.DNSNames, s.request.DNSNames) {
		return fmt.Errorf("%w: not the authority's own names", issuer.Denied)
	}
	return nil
}

// keep has a valid certificate made, and renewed, until ctx ends.
func (s *serving) keep(ctx context.Context) {
	logger := klog.FromContext(ctx)
	// Without one, the tries are at most ten seconds apart: nothing works then.
	next, failures := time.Now(), 0
	validity := renewal.Validity{Issued: next, NotAfter: next.Add(4 * time.Minute)}
	for renewal.SleepUntil(ctx, next) {
		asked := time.Now()
		credential, err := s.issuer.Issue(ctx, issuer.Applicant{}, s.request, issuer.PrivateKey{})
		switch {
		case err == nil:
			s.current.Store(tlsCertificate(credential))
			leaf := credential.Leaf()
			validity, failures = renewal.Validity{Issued: asked, NotAfter: leaf.NotAfter, Spread: renewal.Random()}, 0
			next = validity.Due()
			logger.Info("Issued the authority's own certificate", "serial", leaf.SerialNumber, "names", leaf.DNSNames,
				"notAfter", leaf.NotAfter.UTC().Format(time.RFC3339), "renewal", next.UTC().Format(time.RFC3339))
		case ctx.Err() != nil:
			return
		default:
			failures++
			next = time.Now().Add(validity.Retry(failures, time.Now(), renewal.Random()))
			logger.Error(err, "No certificate for the authority itself", "failures", failures, "next", next.UTC().Format(time.RFC3339))
		}
	}
}

// tlsCertificate shows the roots, too: node plugins know one by its fingerprint.
func tlsCertificate(c *issuer.Credential) *tls.Certificate {
	t := &tls.Certificate{PrivateKey: c.Key.Signer, Leaf: c.Leaf()}
	for _, certificate := range slices.Concat(c.Chain, c.Roots.Own) {
		t.Certificate = append(t.Certificate, certificate.Raw)
	}
	return t
}

var errNoCertificate = errors.New("the authority has no certificate of its own yet")

// certificate is for tls.Config.GetCertificate.
func (s *serving) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := s.current.Load(); c != nil {
		return c, nil
	}
	return nil, errNoCertificate
}

// notAfter is when the certificate expires; the zero value if there is none.
func (s *serving) notAfter() time.Time {
	if c := s.current.Load(); c != nil {
		return c.Leaf.NotAfter
	}
	return time.Time{}
}

func (s *serving) err(now time.Time) error {
	switch expiry := s.notAfter(); {
	case expiry.IsZero():
		return errNoCertificate
	case !now.Before(expiry):
		return fmt.Errorf("the authority's own certificate expired at %s", expiry.UTC().Format(time.RFC3339))
	}
	return nil
}
