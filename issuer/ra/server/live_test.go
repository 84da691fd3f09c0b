package server

import (
	"context"
	"crypto/x509"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/names"
)

// An outage of the CA, even from the start, is no reason to restart the server.
func TestLiveWithoutTheCA(t *testing.T) {
	keeping(t, true, func(t *testing.T, ca *stoppableSigner, s *serving) {
		server := &Server{serving: s, metrics: &metrics{}}
		for range 48 {
			time.Sleep(time.Hour)
			synctest.Wait()
			if err := server.Live(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if s.err() == nil {
			t.Error("the server has a certificate")
		}
	})
}

// stuckSigner never answers, and does not look at the context.
type stuckSigner struct {
	*stoppableSigner
	release chan struct{}
}

func (s *stuckSigner) Sign(ctx context.Context, req issuer.SigningRequest) ([]*x509.Certificate, error) {
	<-s.release
	return s.stoppableSigner.Sign(ctx, req)
}

// A renewal of the own certificate that hangs is a reason.
func TestLiveWithAStuckRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := &stuckSigner{newStoppableSigner(t), make(chan struct{})}
		s, err := newServing(Serving{Issuer: "default", Signer: ca, Names: []names.DNSName{names.Must(names.ParseDNSName("ra.example.com"))}, Lifetimes: issuer.Lifetimes{Default: 24 * time.Hour}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.keep(ctx)
		}()
		server := &Server{serving: s, metrics: &metrics{}}
		time.Sleep(5 * time.Minute)
		if err := server.Live(ctx); err != nil {
			t.Errorf("after five minutes: %v", err)
		}
		time.Sleep(time.Hour)
		if err := server.Live(ctx); err == nil || !strings.Contains(err.Error(), "a renewal has been in progress for") {
			t.Errorf("after an hour: %v", err)
		}
		close(ca.release)
		synctest.Wait()
		if err := server.Live(ctx); err != nil {
			t.Errorf("after its end: %v", err)
		}
		stop()
		<-done
	})
}
