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
	// Issuer is the name of the issuer that signs it, for messages.
	Issuer string
	// Signer has the certificate signed, by the CA that node plugins trust.
	Signer issuer.Signer
	// Names are the DNS names in the certificate. Node plugins connect to one of them.
	Names []names.DNSName
	// Lifetimes are those of the issuer. The certificate has the default one.
	Lifetimes issuer.Lifetimes
}

// serving holds the server's own certificate and renews it.
type serving struct {
	name      string // of the issuer
	issuer    *issuer.Issuer
	request   issuer.Request
	scheduler *schedule.Scheduler
	current   atomic.Pointer[tls.Certificate]
	// validity is the effective one of current; nil until keep has obtained a certificate.
	validity atomic.Pointer[renewal.Validity]
	entry    atomic.Pointer[schedule.Entry] // once keep was called
	early    atomic.Int64                   // the Unix time of the expiry of the chain that renewEarly knows
	unready  *unready                       // served while current is not valid
}

func newServing(c Serving) (*serving, error) {
	commonName, ok := names.FirstCommonName(c.Names)
	if !ok {
		return nil, errors.New("names: the registration authority's own certificate needs DNS names, at least one of them with at most 64 bytes")
	}
	s := &serving{name: c.Issuer, scheduler: schedule.New(), request: issuer.Request{
		CommonName: commonName, DNSNames: c.Names, KeyType: issuer.ECDSAP256,
	}}
	var err error
	if s.unready, err = newUnready(s.because("no answer yet")); err != nil {
		return nil, err
	}
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
	startup := issuer.NewStartup()
	s.entry.Store(s.scheduler.Add("", renewal.Validity{SlowestRetry: slowestRetry}, func(ctx context.Context) (v renewal.Validity, err error) {
		err = s.scheduler.Call(ctx, schedule.Renewal, fair.Owner{}, func(ctx context.Context) (err error) {
			v, err = s.renew(ctx)
			return err
		})
		if err == nil || ctx.Err() != nil {
			return v, err
		}
		s.unready.because(ctx, s.because(err.Error()))
		if s.current.Load() != nil || !startup.Log(ctx, err) {
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
	s.unready.because(ctx, s.because(expired(v)))
	logger.Info("Own certificate issued", "serial", serial, "dnsNames", leaf.DNSNames,
		"notAfter", v.NotAfter.UTC().Format(time.RFC3339), "renewal", v.Due().UTC().Format(time.RFC3339))
	return v, nil
}

// because says why there is no certificate. It names the issuer, because the pods that
// wait may want the certificates of another one.
func (s *serving) because(problem string) string {
	return fmt.Sprintf("issuer %s, which signs the registration authority's own certificate: %s", s.name, problem)
}

// certificate is for tls.Config.GetCertificate. Without a valid certificate, clients get
// the reason, and the connection accepts no calls.
func (s *serving) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if s.err() == nil {
		return s.current.Load(), nil
	}
	if c, ok := hello.Conn.(*connection); ok {
		c.unready.Store(true)
		return s.unready.certificate.Load(), nil
	}
	return nil, errors.New("the registration authority has no certificate, and the connection is not one that refuses calls")
}

// err returns an error if there is no valid certificate.
func (s *serving) err() error {
	if s.current.Load() == nil {
		return errors.New("the registration authority has no certificate yet")
	}
	if v := s.validity.Load(); v != nil && !time.Now().Before(v.NotAfter) {
		return errors.New(expired(*v))
	}
	return nil
}

// expired says which certificate expires at the effective expiry.
func expired(v renewal.Validity) string {
	expired := "the registration authority's own certificate"
	if v.LimitedBy != "" {
		expired = v.LimitedBy + ", which " + expired + " needs,"
	}
	return fmt.Sprintf("%s expired at %s", expired, v.NotAfter.UTC().Format(time.RFC3339))
}
