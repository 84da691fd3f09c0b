package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/renewal"
)

// Serving is the configuration of the server's own certificate.
type Serving struct {
	// Signer has the certificate signed, by the CA that node plugins trust.
	Signer issuer.Signer
	// Names are the DNS names in the certificate. Node plugins connect to one of them.
	Names []names.DNSName
	// Duration is the lifetime of the certificate.
	Duration time.Duration
}

// serving holds the server's own certificate and renews it.
type serving struct {
	issuer  *issuer.Issuer
	request issuer.Request
	current atomic.Pointer[tls.Certificate]
}

func newServing(c Serving) (*serving, error) {
	commonName, ok := names.FirstCommonName(c.Names)
	if !ok || c.Duration <= 0 {
		return nil, errors.New("names: the registration authority's own certificate needs DNS names, at least one of them with at most 64 bytes")
	}
	s := &serving{request: issuer.Request{
		CommonName: commonName, DNSNames: c.Names, Duration: c.Duration, KeyType: issuer.ECDSAP256,
	}}
	var err error
	s.issuer, err = issuer.New(issuer.Config{Signer: c.Signer, Policy: s.onlyOwn})
	return s, err
}

// onlyOwn is the policy of the issuer of this one certificate.
func (s *serving) onlyOwn(_ context.Context, _ issuer.Pod, req issuer.Request) error {
	if !slices.Equal(req.DNSNames, s.request.DNSNames) {
		return fmt.Errorf("%w: not the registration authority's own names", issuer.Denied)
	}
	return nil
}

// keep obtains the certificate and renews it until ctx ends.
func (s *serving) keep(ctx context.Context) {
	logger := klog.FromContext(ctx)
	// Max is short, because no node plugin can connect without a valid certificate.
	retry := backoff.Backoff{First: time.Second, Max: 10 * time.Second}
	for next := time.Now(); backoff.Sleep(ctx, time.Until(next)); {
		due, err := s.renew(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			next = time.Now().Add(retry.Next())
			logger.Error(err, "Own certificate not issued", "retry", next.UTC().Format(time.RFC3339))
			continue
		}
		retry.Reset()
		next = due
		leaf := s.current.Load().Leaf
		logger.Info("Own certificate issued", "serial", leaf.SerialNumber.String(), "dnsNames", leaf.DNSNames,
			"notAfter", leaf.NotAfter.UTC().Format(time.RFC3339), "renewal", next.UTC().Format(time.RFC3339))
	}
}

// renew obtains a new certificate, and returns when to renew that.
func (s *serving) renew(ctx context.Context) (due time.Time, err error) {
	defer panics.Recover(ctx, "renew the own certificate", &err)
	credential, err := s.issuer.Issue(ctx, issuer.Applicant{}, s.request, issuer.PrivateKey{})
	if err != nil {
		return time.Time{}, err
	}
	certificate := &tls.Certificate{PrivateKey: credential.Key.Signer, Leaf: credential.Leaf()}
	// The roots are included, because node plugins may know only the fingerprint of one.
	certificate.Certificate = ra.Raw(slices.Concat(credential.Chain, credential.Roots.Own))
	s.current.Store(certificate)
	return renewal.Validity{Issued: credential.Asked, NotAfter: credential.Leaf().NotAfter, Spread: rand.Float64()}.Due(), nil
}

// certificate is for tls.Config.GetCertificate.
func (s *serving) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := s.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("the registration authority has no certificate yet")
}

// err returns an error if there is no valid certificate.
func (s *serving) err() error {
	c, err := s.certificate(nil)
	if err == nil && !time.Now().Before(c.Leaf.NotAfter) {
		err = fmt.Errorf("the registration authority's own certificate expired at %s", c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return err
}
