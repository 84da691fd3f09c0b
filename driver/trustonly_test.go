package driver

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/schedule"
)

// withTrustOnly returns a volume of the pod with trust only.
func withTrustOnly(pod string) volumeSnapshot {
	v := mounted(pod, "roots")
	v.driver = "csi.step-ca.io"
	v.Attributes = map[string]string{"trust-only": "true"}
	v.Target = "pods/" + pod + "/volumes/kubernetes.io~csi/roots/mount"
	v.state, v.trustOnly = schedule.State{}, true
	return v
}

// A volume with trust only never expires, and nothing of it is due, however old it is. It has
// no series about its certificate.
func TestTrustOnlyHasNoExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, registry := measured(t, true)
		v, other := withTrustOnly("web-0"), withTrustOnly("web-1")
		other.issuer = "other"
		certificate := mounted("web-2", "tls")
		time.Sleep(time.Hour)
		d.show(v, other, certificate)
		for series, want := range map[string]float64{
			`step_csi_volumes{issuer="default",namespace="shop"}`:                                                             2,
			`step_csi_volumes{issuer="other",namespace="shop"}`:                                                               1,
			`step_csi_volumes_overdue{issuer="default",namespace="shop"}`:                                                     0,
			`step_csi_volumes_overdue{issuer="other",namespace="shop"}`:                                                       0,
			`step_csi_volumes_backoff{issuer="other",namespace="shop"}`:                                                       0,
			`step_csi_volumes_expiring{issuer="other",namespace="shop"}`:                                                      0,
			`step_csi_volumes_unmanaged{issuer="other",namespace="shop"}`:                                                     0,
			`step_csi_volumes_earliest_expiration_timestamp_seconds{issuer="default",namespace="shop"}`:                       seconds(certificate.state.Validity.NotAfter),
			`step_csi_volumes_earliest_expiration_timestamp_seconds{issuer="other",namespace="shop"}`:                         -1,
			`step_csi_volumes_earliest_issued_timestamp_seconds{issuer="other",namespace="shop"}`:                             -1,
			`step_csi_certificate_expiration_timestamp_seconds{issuer="default",namespace="shop",pod="web-0",volume="roots"}`: -1,
			`step_csi_certificate_renewal_failures{issuer="default",namespace="shop",pod="web-0",volume="roots"}`:             -1,
		} {
			got, is := scrape(t, registry, "step_csi_")[series]
			if is != (want >= 0) || is && got != want {
				t.Errorf("%s is %v, %t, want %v", series, got, is, want)
			}
		}
		logged, log := logging(t)
		d.logExpiringOnce(logged, nil)
		d.logUnmanagedOnce(logged, nil)
		if log.Len() > 0 {
			t.Errorf("logged:\n%s", log)
		}
		s := d.Status()
		last := s.Volumes[len(s.Volumes)-1]
		if !last.TrustOnly || last.State != StateOK || last.Fails() || !last.NotAfter.IsZero() || !last.Renewal.IsZero() || last.Serial != "" || last.Reason != "" {
			t.Errorf("status %+v", last)
		}
		if reason, message := troubleOf(v.Volume, v.state, time.Now()); reason != "" {
			t.Errorf("%s: %s", reason, message)
		}
		l := &listening{}
		listen(l).report(t.Context(), slices.Values([]reportedVolume{{volumeSnapshot: v}}))
		expectReports(t, "healthy", l)
	})
}

// What is wrong with a volume with trust only shows everywhere as trouble with its roots, and
// nowhere as an expired certificate.
func TestTrustOnlyInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, test := range map[string]struct {
			state     schedule.State
			unmanaged error
			want      string // the volume's state
			reported  bool
		}{
			"no room":        {schedule.State{Err: errors.New("no space left"), Failures: 3}, nil, StateFailing, true},
			"once":           {schedule.State{Err: errors.New("no space left"), Failures: 1}, nil, StateFailing, false},
			"issuer removed": {schedule.State{Err: errors.New("no space left")}, errors.New("no space left"), StateUnmanaged, true},
			"not mounted":    {schedule.State{Err: volume.ErrGone}, volume.ErrGone, StateUnmanaged, false},
		} {
			d, registry := measured(t, false)
			v := withTrustOnly("web-0")
			v.state, v.unmanaged = test.state, test.unmanaged
			v.Pod.UID = "uid"
			v.TakeToken(issuer.NewToken("a.b.c", time.Now().Add(time.Hour)))
			d.show(v)
			series := scrape(t, registry, "step_csi_volumes")
			const labels = `{issuer="default",namespace="shop"}`
			if series["step_csi_volumes_backoff"+labels] != 1 || series["step_csi_volumes_overdue"+labels] != 1 || series["step_csi_volumes_expiring"+labels] != 0 {
				t.Errorf("%s: %v", name, series)
			}
			if got := d.Status().Volumes[0]; got.State != test.want || got.Reason != test.state.Err.Error() || !got.Fails() {
				t.Errorf("%s: %+v", name, got)
			}
			reason, message := troubleOf(v.Volume, v.state, time.Now())
			if want := "the roots in the volume do not follow those of the issuer: " + test.state.Err.Error(); reason != reasonFailing || message != want {
				t.Errorf("%s: %s: %s", name, reason, message)
			}
			l := &listening{}
			r := listen(l)
			r.report(t.Context(), slices.Values([]reportedVolume{{volumeSnapshot: v}}))
			if !test.reported {
				expectReports(t, name, l)
				continue
			}
			expectReports(t, name, l, "web-0: "+string(issuer.RenewalFailing))
			healed := v
			healed.state, healed.unmanaged = schedule.State{}, nil
			r.report(t.Context(), slices.Values([]reportedVolume{{volumeSnapshot: healed}}))
			if text := strings.Join(l.texts, ""); !strings.Contains(text, "the roots in the volume follow those of the issuer again") {
				t.Errorf("%s: the end of the trouble is reported as %q", name, text)
			}
		}
	})
}
