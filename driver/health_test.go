package driver

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/flexstack/step-csi/driver/schedule"
	"github.com/flexstack/step-csi/issuer/renewal"
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
