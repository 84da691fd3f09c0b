package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/flexstack/step-csi/issuer/panics"
)

// logging returns a context whose logger writes to the buffer.
func logging(t *testing.T) (context.Context, *bytes.Buffer) {
	log := &bytes.Buffer{}
	return klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log)))), log
}

// The metrics do not name the pod of an expiring certificate. The log does, with the
// reason, once for each certificate.
func TestExpiringCertificateIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := measured(t, false)
		failing, hanging := mounted("web-0", "tls"), mounted("web-1", "tls")
		failing.VolumeID, hanging.VolumeID = "csi-a", "csi-b"
		failing.Target, hanging.Target = "a", "b"
		failing.state.Failures, failing.state.Err = 7, errors.New("issuer default: denied")
		hanging.state.Validity.LimitedBy, hanging.state.Validity.LeafNotAfter = "the root", hanging.state.Validity.NotAfter
		all := []volumeSnapshot{failing, hanging}
		for i := range 1000 {
			v := mounted(fmt.Sprint("good-", i), "tls")
			v.VolumeID, v.state.Next = fmt.Sprint("csi-", i), time.Now().Add(1000*time.Hour)
			all = append(all, v)
		}
		d.show(all...)
		logged, log := logging(t)
		ctx, stop := context.WithCancel(logged)
		ended := make(chan struct{})
		go func() { d.logExpiring(ctx); close(ended) }()
		time.Sleep(19 * time.Hour) // less than four fifths of a day
		synctest.Wait()
		if log.Len() > 0 {
			t.Errorf("too early:\n%s", log)
		}
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		for _, want := range []string{
			`"Certificate expiring" err="issuer default: denied" pod="shop/web-0" volumeID="csi-a" issuer="default" notAfter="2000-01-02T00:00:00Z" failures=7`,
			`"Certificate expiring" err="the renewal is overdue, but has not failed" pod="shop/web-1" volumeID="csi-b" issuer="default" notAfter="2000-01-02T00:00:00Z" failures=0 limitedBy="the root"`,
		} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("not once: %s\n%s", want, log)
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines:\n%s", n, log)
		}

		// The certificate is renewed, and the next one expires, too.
		d.show(hanging)
		time.Sleep(expiringCheck)
		again := mounted("web-0", "tls")
		again.Target, again.state.Failures = "a", 1
		d.show(again, hanging)
		time.Sleep(23 * time.Hour)
		synctest.Wait()
		if n := strings.Count(log.String(), `pod="shop/web-0"`); n != 2 {
			t.Errorf("web-0 is logged %d times:\n%s", n, log)
		}
		stop()
		<-ended
	})
}

// A panic about one volume does not hide the others.
func TestPanicAboutAnExpiringVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := measured(t, false)
		v := mounted("web-0", "tls")
		v.Volume = nil
		v.state.Failures = 1
		other := mounted("web-1", "tls")
		other.state.Failures = 1
		d.show(v, other)
		before := panics.Total()
		logged, log := logging(t)
		ctx, stop := context.WithCancel(logged)
		ended := make(chan struct{})
		go func() { d.logExpiring(ctx); close(ended) }()
		time.Sleep(20*time.Hour + expiringCheck/2)
		synctest.Wait()
		if n := panics.Total() - before; n == 0 || !strings.Contains(log.String(), `"Certificate expiring" err="the renewal is overdue, but has not failed" pod="shop/web-1"`) {
			t.Errorf("%d panics recovered:\n%s", n, log)
		}
		stop()
		<-ended
	})
}
