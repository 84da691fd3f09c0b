package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
)

// listening is a Reporter that records the reports, and answers with an error.
type listening struct {
	mu    sync.Mutex
	heard []string // pod: reason
	texts []string
	err   error
}

func (l *listening) Report(_ context.Context, pod issuer.Applicant, r issuer.Report) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, pod.Name+": "+string(r.Reason))
	l.texts = append(l.texts, r.Volume+": "+r.Text)
	return l.err
}

// take returns what was reported since the last call.
func (l *listening) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	heard := l.heard
	l.heard, l.texts = nil, nil
	return heard
}

// reported returns a volume of the pod, as mounted does, with a token of the pod.
func reported(pod string) reportedVolume {
	v := reportedVolume{volumeSnapshot: mounted(pod, "tls")}
	v.Target, v.Pod.UID = "pods/"+pod+"/volumes/kubernetes.io~csi/tls/mount", "uid-"+pod
	v.TakeToken(issuer.NewToken("a.b.c", time.Now().Add(1000*time.Hour)))
	return v
}

// failed returns the volume in the state after a number of failed renewals.
func (v reportedVolume) failed(failures int, err error) reportedVolume {
	v.state.Failures, v.state.Err = failures, err
	return v
}

func listen(reporter Reporter) *reports {
	return newReports(map[string]Issuer{"default": {Reporter: reporter}, "other": {}})
}

func expectReports(t *testing.T, what string, l *listening, want ...string) {
	t.Helper()
	if got := l.take(); !slices.Equal(got, want) {
		t.Errorf("%s: reported %q, want %q", what, got, want)
	}
}

// A pod gets an event for trouble of its own after three failures, and for an outage when
// half of the time for the renewal is over. Short disturbances and healthy volumes are
// not reported.
func TestTroubleThatIsReported(t *testing.T) {
	denied := fmt.Errorf("%w: not allowed", issuer.Denied)
	down := fmt.Errorf("%w: connection refused", issuer.Unavailable)
	for name, test := range map[string]struct {
		failures int
		err      error
		after    time.Duration
		want     issuer.Reason // or none
	}{
		"healthy":                         {0, nil, 15 * time.Hour, ""},
		"denied twice":                    {2, denied, 16 * time.Hour, ""},
		"denied three times":              {3, denied, 16 * time.Hour, issuer.RenewalFailing},
		"denied late":                     {1, denied, 21 * time.Hour, issuer.RenewalFailing},
		"the CA is down, much time left":  {50, down, 18 * time.Hour, ""},
		"the CA is down, half is left":    {50, down, 21 * time.Hour, issuer.RenewalFailing},
		"expired while the CA is down":    {50, down, 24 * time.Hour, issuer.CertificateExpired},
		"expired without a failure":       {0, nil, 25 * time.Hour, issuer.CertificateExpired},
		"never renewed":                   {0, errors.New("it does not fit"), time.Hour, issuer.RenewalFailing},
		"something else is mounted there": {0, volume.ErrGone, time.Hour, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &listening{}
			v := reported("web-0").failed(test.failures, test.err)
			time.Sleep(test.after)
			listen(l).report(t.Context(), slices.Values([]reportedVolume{v}))
			want := []string{"web-0: " + string(test.want)}
			if test.want == "" {
				want = nil
			} else if _, text := trouble(v.state, time.Now()); !slices.Equal(l.texts, []string{"tls: " + text}) {
				t.Errorf("%s: the report %q is not the volume's condition", name, l.texts)
			}
			expectReports(t, name, l, want...)
		})
	}
}

// Trouble is reported again every half hour, and its end once.
func TestReportsAreRepeatedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listening{}
		r := listen(l)
		failing := reported("web-0").failed(9, issuer.Denied)
		check := func(v reportedVolume, times int) {
			for range times {
				r.report(t.Context(), slices.Values([]reportedVolume{v}))
				time.Sleep(reportCheck)
			}
		}
		check(failing, 1)
		expectReports(t, "at first", l, "web-0: RenewalFailing")
		check(failing, int(repeatReport/reportCheck)-1)
		expectReports(t, "soon", l)
		check(failing, 1)
		expectReports(t, "after half an hour", l, "web-0: RenewalFailing")
		time.Sleep(24 * time.Hour)
		check(failing, 2)
		expectReports(t, "expired", l, "web-0: CertificateExpired")
		renewed := failing.failed(0, nil)
		renewed.state.Validity.NotAfter = time.Now().Add(time.Hour)
		check(renewed, 100)
		expectReports(t, "renewed", l, "web-0: CertificateRenewed")
		failing = renewed.failed(3, issuer.Denied)
		check(failing, 2)
		expectReports(t, "failing again", l, "web-0: RenewalFailing")
		// The volume is removed, and another one of the same path is not known to fail.
		r.report(t.Context(), slices.Values([]reportedVolume{}))
		check(renewed, 2)
		expectReports(t, "a new volume", l)
		if len(r.silent)+len(r.troubled) > 0 {
			t.Errorf("still remembered: %v, %v", r.silent, r.troubled)
		}
	})
}

// Recovery is not reported to a pod that was told of no trouble.
func TestRecoveryWithoutReportedTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, err := range []error{issuer.NoPodToken, issuer.Throttled, issuer.Denied, issuer.Unavailable, issuer.Unsupported} {
			l := &listening{err: err}
			r := listen(l)
			v := reported("web-0").failed(9, issuer.Denied)
			r.report(t.Context(), slices.Values([]reportedVolume{v}))
			expectReports(t, err.Error(), l, "web-0: RenewalFailing")
			l.err = nil
			time.Sleep(2 * noReports)
			r.report(t.Context(), slices.Values([]reportedVolume{v.failed(0, nil)}))
			expectReports(t, err.Error()+", then renewed", l)
		}
	})
}

// A file mode is warned about once, beside other trouble of the same volume.
func TestModeWarningIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listening{}
		r := listen(l)
		v := reported("web-0").failed(9, issuer.Denied)
		v.modeWarning = "file-mode: only root"
		for range 3 * repeatReport / reportCheck / 2 {
			r.report(t.Context(), slices.Values([]reportedVolume{v}))
			time.Sleep(reportCheck)
		}
		if want := "tls: file-mode: only root"; l.texts[1] != want {
			t.Errorf("reported %q, want %q", l.texts[1], want)
		}
		expectReports(t, "both", l, "web-0: RenewalFailing", "web-0: FilesUnreadable", "web-0: RenewalFailing")
	})
}

// The registration authority of any issuer reports that another issuer was removed.
func TestRemovedIssuerIsReported(t *testing.T) {
	l := &listening{}
	v := reported("web-0").failed(0, errors.New("no such issuer"))
	v.removed, v.issuer = true, ""
	listen(l).report(t.Context(), slices.Values([]reportedVolume{v}))
	expectReports(t, "removed", l, "web-0: IssuerRemoved")
}

// An outage that concerns a hundred pods makes few reports at a time, the most urgent
// first, and one of each pod. All pods are reported in the end.
func TestReportsOfANodeAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listening{}
		r := listen(l)
		var all []reportedVolume
		for n := range 100 {
			v := reported(fmt.Sprintf("web-%02d", n)).failed(9, issuer.Denied)
			v.state.Validity.NotAfter = v.state.Validity.NotAfter.Add(-time.Duration(n) * time.Minute)
			second := reported(v.Pod.Name) // of the same pod
			second.state = v.state
			second.Target += "2"
			all = append(all, v, second)
		}
		r.report(t.Context(), slices.Values(all))
		expectReports(t, "the first check", l, "web-99: RenewalFailing", "web-98: RenewalFailing", "web-97: RenewalFailing", "web-96: RenewalFailing")
		for range 2*100/mostReports - 1 {
			r.report(t.Context(), slices.Values(all))
		}
		if got := len(l.take()); got != 200-mostReports {
			t.Errorf("%d of 200 volumes are reported", got+mostReports)
		}
		r.report(t.Context(), slices.Values(all))
		expectReports(t, "nothing is left", l)
	})
}

// A registration authority that is down, or makes no events, is left alone for a while.
func TestReporterThatFailsIsPaused(t *testing.T) {
	for _, test := range []struct {
		err         error
		least, most int // calls within a day
	}{
		{issuer.Unsupported, 24, 24},
		{issuer.Unavailable, 24 * 6, 24*12 + 20}, // at most every 5 to 10 minutes
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &listening{err: test.err}
			r := listen(l)
			v := reported("web-0").failed(9, issuer.Denied)
			for range 24 * time.Hour / reportCheck {
				r.report(t.Context(), slices.Values([]reportedVolume{v, reported("web-1").failed(9, issuer.Denied)}))
				time.Sleep(reportCheck)
			}
			if calls := len(l.heard); calls < test.least || calls > test.most {
				t.Errorf("%v: %d calls within a day", test.err, calls)
			}
		})
	}
}

// A registration authority that is down keeps no report from another one.
func TestPausedReporterDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down, l := &listening{err: issuer.Unavailable}, &listening{}
		r := newReports(map[string]Issuer{"default": {Reporter: down}, "other": {Reporter: l}})
		var all []reportedVolume
		for n := range 2 * mostReports {
			v := reported(fmt.Sprint("urgent-", n)).failed(9, issuer.Denied)
			v.state.Validity.NotAfter = v.state.Validity.NotAfter.Add(-time.Hour)
			all = append(all, v)
		}
		v := reported("web-0").failed(9, issuer.Denied)
		v.issuer = "other"
		for range 2 {
			r.report(t.Context(), slices.Values(append(all, v)))
		}
		if calls := len(down.take()); calls != 1 {
			t.Errorf("%d calls of the one that is down", calls)
		}
		expectReports(t, "the other one", l, "web-0: RenewalFailing")
	})
}

// Without a valid token of the pod, nothing proves which pod a report is about.
func TestReportNeedsAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listening{}
		r := listen(l)
		v := reported("web-0").failed(9, issuer.Denied)
		none := v
		none.Volume = &volume.Volume{Spec: v.Spec}
		r.report(t.Context(), slices.Values([]reportedVolume{none}))
		expectReports(t, "no token", l)
		time.Sleep(2000 * time.Hour)
		r.report(t.Context(), slices.Values([]reportedVolume{v}))
		expectReports(t, "an expired token", l)
	})
}

// Without a registration authority, nothing runs.
func TestNoReporter(t *testing.T) {
	d, _ := measured(t, false)
	d.reportToPods(context.Background()) // returns
}

// The driver's own loop reports until it is stopped. A panic fails only one report.
func TestReportToPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := measured(t, false)
		p := &panickingOnce{}
		d.config.Issuers["other"] = Issuer{Reporter: p}
		v := reported("web-0").failed(9, issuer.Denied)
		v.Attributes = map[string]string{"issuer": "gone"}
		w := reported("web-1").failed(9, issuer.Denied)
		w.Attributes = v.Attributes
		w.state.Validity.NotAfter = w.state.Validity.NotAfter.Add(time.Minute)
		d.show(v.volumeSnapshot, w.volumeSnapshot)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { d.reportToPods(ctx); close(ended) }()
		time.Sleep(repeatReport - 2*reportCheck)
		synctest.Wait()
		expectReports(t, "the other pod, beside the panic", &p.listening, "web-1: IssuerRemoved")
		time.Sleep(4 * reportCheck)
		synctest.Wait()
		stop()
		<-ended
		expectReports(t, "after half an hour", &p.listening, "web-0: IssuerRemoved", "web-1: IssuerRemoved")
	})
}

type panickingOnce struct {
	listening
	panicked bool
}

func (p *panickingOnce) Report(ctx context.Context, pod issuer.Applicant, r issuer.Report) error {
	if !p.panicked {
		p.panicked = true
		panic("a defect of a test")
	}
	return p.listening.Report(ctx, pod, r)
}
