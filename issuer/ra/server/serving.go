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
	"github.com/flexstack/step-csi/issuer/fair"
	"github.com/flexstack/step-csi/issuer/names"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/ra"
	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// Serving is the configuration of the server's own certificate.
type Serving struct {
	// Signer has the certificate signed, by the CA that node plugins trust.
	Signer issuer.Signer
	// Names are the DNS names in the certificate. Node plugins connect to one of them.
	Names []names.DNSName
	// Lifetimes are those of the issuer. The certificate has the default one.
	Lifetimes issuer.Lifetimes
}

// serving holds the server's own certificate and renews it.
type serving struct {
	issuer    *issuer.Issuer
	request   issuer.Request
	scheduler *schedule.Scheduler
	current   atomic.Pointer[tls.Certificate]
	// validity is the effective one of current; nil until keep has obtained a certificate.
	validity atomic.Pointer[renewal.Validity]
	entry    atomic.Pointer[schedule.Entry] // once keep was called
	early    atomic.Int64                   // the Unix time of the expiry of the chain that renewEarly knows
}

func newServing(c Serving) (*serving, error) {
	commonName, ok := names.FirstCommonName(c.Names)
	if !ok {
		return nil, errors.New("names: the registration authority's own certificate needs DNS names, at least one of them with at most 64 bytes")
	}
	s := &serving{scheduler: schedule.New(), request: issuer.Request{
		CommonName: commonName, DNSNames: c.Names, KeyType: issuer.ECDSAP256,
	}}
	var err error
	s.issuer, err = issuer.New(issuer.Config{Signer: c.Signer, Policy: s.onlyOwn, Lifetimes: c.Lifetimes})
	return s, err
}

// onlyOwn is the policy of the issuer of this one certificate.
func (s *serving) onlyOwn(_ context.Context, _ issuer.Pod, req issuer.Request) error {
	if !slices.Equal(req.DNSNames, s.request.DNSNames) {
		return fmt.Errorf("%w: not the registration authority's own names", issuer.Denied)
	}
	return nil
}

// slowestRetry is the longest wait between two tries to renew the certificate. It is
// short, because no node plugin can connect without a valid certificate, and the machine
// may be suspended during the wait.
const slowestRetry = 10 * time.Second

// keep obtains the certificate and renews it until ctx ends.
func (s *serving) keep(ctx context.Context) {
	s.entry.Store(s.scheduler.Add("", renewal.Validity{SlowestRetry: slowestRetry}, func(ctx context.Context) (v renewal.Validity, err error) {
		err = s.scheduler.Call(ctx, schedule.Renewal, fair.Owner{}, func(ctx context.Context) (err error) {
			v, err = s.renew(ctx)
			return err
		})
		if err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Own certificate not issued")
		}
		return v, err
	}))
	s.scheduler.Run(ctx)
}

// renewEarly makes the renewal due if a certificate of the CA limits the own certificate, and
// a CA has shown a chain that expires later, at the time longest. It does so once for each
// such chain.
func (s *serving) renewEarly(longest time.Time) {
	v, entry := s.validity.Load(), s.entry.Load()
	if v == nil || entry == nil || v.LimitedBy == "" || !longest.After(v.NotAfter) {
		return
	}
	if known := s.early.Load(); longest.Unix() > known && s.early.CompareAndSwap(known, longest.Unix()) {
		entry.RenewEarly()
	}
}

// renew obtains a new certificate.
func (s *serving) renew(ctx context.Context) (v renewal.Validity, err error) {
	defer panics.Recover(ctx, "renew the own certificate", &err)
	logger := klog.FromContext(ctx)
	warnings := klog.NewContext(ctx, logger.WithValues("dnsNames", names.Texts(s.request.DNSNames)))
	credential, err := s.issuer.Issue(warnings, issuer.Applicant{}, s.request, issuer.PrivateKey{})
	if err != nil {
		return v, err
	}
	leaf := credential.Leaf()
	serial := leaf.SerialNumber.String()
	v = renewal.Validity{
		Issued: credential.Asked, NotAfter: credential.NotAfter(), LimitedBy: credential.LimitedBy(), LeafNotAfter: leaf.NotAfter,
		MinInterval: slowestRetry, Spread: renewal.SpreadOf(serial), SlowestRetry: slowestRetry,
	}
	// The roots are included, because node plugins may know only the fingerprint of one.
	chain := ra.Raw(slices.Concat(credential.Chain, credential.Roots.Own))
	s.current.Store(&tls.Certificate{Certificate: chain, PrivateKey: credential.Key.Signer, Leaf: leaf})
	s.validity.Store(&v)
	logger.Info("Own certificate issued", "serial", serial, "dnsNames", leaf.DNSNames,
		"notAfter", v.NotAfter.UTC().Format(time.RFC3339), "renewal", v.Due().UTC().Format(time.RFC3339))
	return v, nil
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
	_, err := s.certificate(nil)
	if v := s.validity.Load(); v != nil && !time.Now().Before(v.NotAfter) {
		expired := "the registration authority's own certificate"
		if v.LimitedBy != "" {
			expired = v.LimitedBy + ", which " + expired + " needs,"
		}
		err = fmt.Errorf("%s expired at %s", expired, v.NotAfter.UTC().Format(time.RFC3339))
	}
	return err
}
