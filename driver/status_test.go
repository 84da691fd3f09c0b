package driver

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/flexstack/step-csi/issuer"
)

// The status has all volumes, those that expire first at the beginning, with their states.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := measured(t, false)
		now := time.Now()
		with := func(name string, expires time.Duration, change func(*volumeSnapshot)) volumeSnapshot {
			v := mounted(name, "tls")
			v.driver = "csi.step-ca.io"
			v.state.Validity.NotAfter, v.state.Next = now.Add(expires), now.Add(time.Hour)
			if change != nil {
				change(&v)
			}
			return v
		}
		var all []volumeSnapshot
		for i := range 100 {
			all = append(all, with(fmt.Sprintf("good-%02d", i), time.Duration(100-i)*time.Hour, nil))
		}
		all = append(all,
			with("expired", -time.Hour, func(v *volumeSnapshot) { v.state.Failures, v.state.Err = 3, errors.New("connection refused") }),
			with("failing", 10*time.Minute, func(v *volumeSnapshot) { v.state.Failures, v.state.Err = 2, errors.New(strings.Repeat("ä", 10_000)) }),
			with("overdue", 20*time.Minute, func(v *volumeSnapshot) { v.state.Next = now.Add(-time.Hour) }),
			with("unmanaged", 30*time.Minute, func(v *volumeSnapshot) { v.unmanaged = errors.New("no such issuer") }),
		)
		d.show(all...)
		d.volumes.putUnread("pods/uid/volumes/kubernetes.io~csi/tls/mount", errors.New("no record"))
		s := d.Status()
		if s.Node != "node-1" || s.Driver != "csi.step-ca.io" || s.Ready || s.NotReady == "" || s.Registered != nil || !s.Fails() || len(s.Volumes) != 105 {
			t.Fatalf("%+v, %d volumes", s, len(s.Volumes))
		}
		if len(s.Issuers) != 2 || s.Issuers[0] != (issuer.Status{Name: "default", Reason: "not connected yet"}) {
			t.Errorf("issuers %+v", s.Issuers)
		}
		for i, want := range []struct {
			pod, state, reason string
			failures           int
			renewed            bool
		}{
			{"", StateUnmanaged, "no record", 1, false},
			{"expired", StateExpired, "connection refused", 3, true},
			{"failing", StateFailing, "ää", 2, true},
			{"overdue", StateOverdue, "overdue", 0, true},
			{"unmanaged", StateUnmanaged, "no such issuer", 1, false},
			{"good-99", StateOK, "", 0, true},
			{"good-98", StateOK, "", 0, true},
		} {
			v := s.Volumes[i]
			if v.Pod != want.pod || v.State != want.state || !strings.Contains(v.Reason, want.reason) || v.Failures != want.failures || v.Renewal.IsZero() == want.renewed ||
				v.Fails() == (want.state == StateOK) || v.Volume != "tls" {
				t.Errorf("%+v, want %+v", v, want)
			}
			if len(v.Reason) > longestReason+10 || !utf8.ValidString(v.Reason) {
				t.Errorf("a reason of %d bytes", len(v.Reason))
			}
		}
		if last := s.Volumes[104]; last.Pod != "good-00" || last.Fails() {
			t.Errorf("the last one is %+v", last)
		}
	})
}
