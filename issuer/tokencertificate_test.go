package issuer_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
)

// certificateSigner authenticates to its CA with a certificate.
type certificateSigner struct {
	*changingSigner
	validity atomic.Pointer[[2]time.Time]
}

func (s *certificateSigner) renew(lifetime time.Duration) {
	s.validity.Store(&[2]time.Time{time.Now(), time.Now().Add(lifetime)})
}

func (s *certificateSigner) TokenCertificate() (issued, expires time.Time) {
	v := s.validity.Load()
	return v[0], v[1]
}

func (*certificateSigner) Connect(context.Context) error { return nil }

func (*certificateSigner) HolderRenewal(context.Context, time.Duration) (string, error) {
	return "", nil
}

// A certificate that nobody renews is announced before the CA refuses everything: by the
// log once, by /readyz, and by metrics.
func TestTokenCertificateIsAboutToExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines log[string]
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), funcr.New(func(_, args string) { lines.add(args) }, funcr.Options{})))
		defer stop()
		s := &certificateSigner{changingSigner: newChangingSigner(t)}
		s.renew(100 * time.Hour)
		i, err := issuer.New(issuer.Config{Signer: s, Policy: allowAll})
		if err != nil {
			t.Fatal(err)
		}
		var r issuer.Readiness
		r.Expect("a")
		go r.Watch(ctx, "a", i, 5*time.Minute)
		expect := func(when string, warns bool, logged int) {
			t.Helper()
			synctest.Wait()
			if details := r.Details(); warns != strings.Contains(details, "issuer a: warning: the certificate in provisioner.certificateFile (in the chart: certificateSecret) expires at ") || r.Err() != nil {
				t.Errorf("%s: %q, %v", when, details, r.Err())
			}
			if n := strings.Count(strings.Join(lines.all(), "\n"), "Warning: the certificate that signs tokens is about to expire"); n != logged {
				t.Errorf("%s: logged %d times", when, n)
			}
			_, expires := s.TokenCertificate()
			if got := gauge(t, &r, "step_csi_issuer_token_certificate_expiration_timestamp_seconds", "a"); got != float64(expires.Unix()) {
				t.Errorf("%s: the metric is %v, want %d", when, got, expires.Unix())
			}
		}
		expect("new", false, 0)
		pass(79 * time.Hour)
		expect("before the last fifth", false, 0)
		pass(2 * time.Hour)
		expect("in the last fifth", true, 1)
		pass(10 * time.Hour)
		expect("later", true, 1)
		s.renew(100 * time.Hour)
		pass(6 * time.Minute)
		expect("renewed", false, 1)
		pass(90 * time.Hour)
		expect("not renewed again", true, 2)
	})
}
