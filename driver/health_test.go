package driver

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/issuer/renewal"
	"github.com/flexstack/step-csi/issuer/schedule"
)

func TestTrouble(t *testing.T) {
	now := time.Now()
	day := renewal.Validity{Issued: now, NotAfter: now.Add(24 * time.Hour)}
	failing := schedule.State{Validity: day, Err: errors.New("no route to host"), Failures: 3, Next: now.Add(22 * time.Hour)}
	for _, test := range []struct {
		state  schedule.State
		after  time.Duration
		reason string
	}{
		{schedule.State{Validity: day}, 20 * time.Hour, ""},
		{schedule.State{}, 0, ""},
		{failing, 20 * time.Hour, "RenewalFailing"},
		{failing, 24 * time.Hour, "CertificateExpired"},
		{schedule.State{Validity: day}, 30 * time.Hour, "CertificateExpired"},
	} {
		reason, message := trouble(test.state, now.Add(test.after))
		if reason != test.reason || strings.Contains(message, "no route to host") != (test.state.Err != nil) {
			t.Errorf("after %s: %s: %s", test.after, reason, message)
		}
		if strings.Contains(message, "next retry: under way") != (test.state.Err != nil && test.after > 22*time.Hour) {
			t.Errorf("after %s: %s", test.after, message)
		}
	}
}

// The message names the certificate of the CA that limits the pod's.
func TestTroubleNamesTheLimitingCertificate(t *testing.T) {
	now := time.Now()
	v := renewal.Validity{Issued: now, NotAfter: now.Add(10 * time.Minute), LimitedBy: `the intermediate "Issuing CA" (serial number 7)`, LeafNotAfter: now.Add(time.Hour)}
	if reason, message := trouble(schedule.State{Validity: v}, now); reason != "" {
		t.Errorf("a limited certificate that is not due: %s: %s", reason, message)
	}
	gainless := schedule.State{Validity: v, Failures: 1, Err: fmt.Errorf("%w: %s expires soon", schedule.ErrLimited, v.LimitedBy), Next: now.Add(time.Minute)}
	reason, message := trouble(gainless, now)
	if want := "the certificate is valid until " + v.NotAfter.UTC().Format(time.RFC3339) + " only; failures in a row: 1, the last one: "; reason != "RenewalFailing" ||
		!strings.HasPrefix(message, want) || !strings.Contains(message, `"Issuing CA" (serial number 7)`) {
		t.Errorf("%s: %s", reason, message)
	}
	reason, message = trouble(gainless, v.NotAfter)
	if want := `the intermediate "Issuing CA" (serial number 7), which the certificate needs, expired at `; reason != "CertificateExpired" || !strings.HasPrefix(message, want) {
		t.Errorf("%s: %s", reason, message)
	}
}
