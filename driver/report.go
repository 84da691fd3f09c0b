package driver

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/flexstack/step-csi/driver/volume"
	"github.com/flexstack/step-csi/issuer"
	"github.com/flexstack/step-csi/issuer/backoff"
	"github.com/flexstack/step-csi/issuer/panics"
	"github.com/flexstack/step-csi/issuer/schedule"
)

const (
	// reportCheck is how often the driver looks for volumes to report.
	reportCheck = 15 * time.Second
	// mostReports limits the reports of one check: they cost the API server as much as a
	// certificate does, and one outage can concern all pods of all nodes.
	mostReports = 4
	// repeatReport is how long a report stands. Kubernetes deletes events after an hour.
	repeatReport = 30 * time.Minute
	// retryReport is the wait after a report that failed because of its pod.
	retryReport = 5 * time.Minute
	// noReports is the wait after an answer that there are no events.
	noReports = time.Hour
	// troubleFailures is the number of failures in a row that are no short disturbance.
	troubleFailures = 3
)

// Reporter tells the owner of a pod about its certificate, such as by an event of the
// pod.
type Reporter interface {
	// Report identifies the pod by its token alone. The outcome of the error is
	// Unsupported if the reporter has no way to tell the owner.
	Report(ctx context.Context, pod issuer.Applicant, r issuer.Report) error
}

// reportToPods tells the owners of running pods what is wrong with their certificates,
// until ctx ends. Reports are a courtesy: they wait for nothing, nothing waits for them,
// and one that fails is not important. The log has everything that is reported.
func (d *Driver) reportToPods(ctx context.Context) {
	r := newReports(d.config.Issuers)
	if r.usual == nil {
		return
	}
	ticker := time.NewTicker(reportCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.report(ctx, d.reportedVolumes())
		case <-ctx.Done():
			return
		}
	}
}

// reports remembers what was reported.
type reports struct {
	byIssuer map[string]*reporterState
	usual    *reporterState          // for volumes whose issuer has none; nil if there is none at all
	silent   map[reportKey]time.Time // until when nothing is reported
	troubled map[string]bool         // target paths whose last report was about trouble
}

// reporterState is a Reporter with the time until which it is not called.
type reporterState struct {
	Reporter
	paused time.Time
	retry  backoff.Backoff
}

func (s *reporterState) isPaused(now time.Time) bool { return now.Before(s.paused) }

// reportKey identifies a report. A target path is that of one volume of one pod.
type reportKey struct {
	target string
	reason issuer.Reason
}

// reportedVolume is a volume, as far as reports are about it.
type reportedVolume struct {
	volumeSnapshot
	modeWarning string
	removed     bool // its issuer was removed from the configuration
}

// dueReport is a report to make now.
type dueReport struct {
	issuer.Report
	volume   reportedVolume
	reporter *reporterState
}

func newReports(issuers map[string]Issuer) *reports {
	r := &reports{byIssuer: map[string]*reporterState{}, silent: map[reportKey]time.Time{}, troubled: map[string]bool{}}
	for _, name := range slices.Sorted(maps.Keys(issuers)) {
		if reporter := issuers[name].Reporter; reporter != nil {
			r.byIssuer[name] = &reporterState{Reporter: reporter, retry: backoff.Backoff{First: time.Minute, Max: 10 * time.Minute}}
			r.usual = cmp.Or(r.usual, r.byIssuer[name])
		}
	}
	return r
}

func (d *Driver) reportedVolumes() iter.Seq[reportedVolume] {
	return func(yield func(reportedVolume) bool) {
		for v := range d.collector.volumes {
			_, configured := d.issuers[cmp.Or(v.Attributes["issuer"], "default")]
			if !yield(reportedVolume{v, v.ModeWarning(), v.Issuer() == nil && !configured}) {
				return
			}
		}
	}
}

// report makes the most urgent reports about the volumes.
func (r *reports) report(ctx context.Context, volumes iter.Seq[reportedVolume]) {
	defer panics.Recover(ctx, "report to pods", nil)
	for _, due := range r.due(volumes, time.Now()) {
		if due.reporter.isPaused(time.Now()) {
			continue // since the report before
		}
		err := due.send(ctx)
		if ctx.Err() != nil {
			return
		}
		r.observe(due, err)
		values := append(due.volume.LogValues(), "reason", due.Reason)
		if err != nil {
			klog.FromContext(ctx).V(4).Info("Report to the pod failed", append(values, "err", err.Error())...)
			continue
		}
		klog.FromContext(ctx).V(4).Info("Reported to the pod", values...)
	}
}

// send makes the report. A panic is an error of this report.
func (due dueReport) send(ctx context.Context) (err error) {
	defer panics.Recover(ctx, "report to a pod", &err)
	return due.reporter.Report(ctx, due.volume.Applicant(), due.Report)
}

// observe decides what is not reported, or retried, for how long.
func (r *reports) observe(made dueReport, err error) {
	reporter := made.reporter
	now, outcome := time.Now(), issuer.OutcomeOf(err)
	key := reportKey{made.volume.Target, made.Reason}
	switch {
	case outcome == issuer.Unsupported:
		reporter.paused = now.Add(noReports)
		return
	case outcome.IsDown():
		reporter.paused = now.Add(reporter.retry.Next())
		return
	}
	reporter.retry.Reset()
	switch {
	case outcome == issuer.NoPodToken, outcome == issuer.Throttled: // a later report may succeed
		r.silent[key] = now.Add(retryReport)
	case made.Reason == issuer.CertificateRenewed:
		delete(r.troubled, key.target)
		maps.DeleteFunc(r.silent, func(k reportKey, _ time.Time) bool {
			return k.target == key.target && k.reason != issuer.FilesUnreadable
		})
	case made.Reason == issuer.FilesUnreadable: // the attributes of a pod do not change
		r.silent[key] = now.AddDate(100, 0, 0)
	default:
		r.silent[key] = now.Add(repeatReport)
		r.troubled[key.target] = err == nil || r.troubled[key.target]
	}
}

// due returns the reports to make now, the most urgent first, and at most one of a pod.
// It forgets volumes that are gone.
func (r *reports) due(volumes iter.Seq[reportedVolume], now time.Time) []dueReport {
	var all []dueReport
	mounted := map[string]bool{}
	for v := range volumes {
		mounted[v.Target] = true
		reporter := cmp.Or(r.byIssuer[v.issuer], r.usual)
		if reporter.isPaused(now) || !v.Applicant().Token.ValidAt(now) {
			continue // without a token, nothing proves for which pod a report would be
		}
		for _, report := range r.about(v, now) {
			if !now.Before(r.silent[reportKey{v.Target, report.Reason}]) {
				report.Volume = nameInPod(v.Target)
				all = append(all, dueReport{report, v, reporter})
			}
		}
	}
	maps.DeleteFunc(r.silent, func(k reportKey, _ time.Time) bool { return !mounted[k.target] })
	maps.DeleteFunc(r.troubled, func(target string, _ bool) bool { return !mounted[target] })
	slices.SortFunc(all, func(a, b dueReport) int {
		return cmp.Or(a.urgency()-b.urgency(), a.volume.state.Validity.NotAfter.Compare(b.volume.state.Validity.NotAfter))
	})
	pods := map[string]bool{}
	all = slices.DeleteFunc(all, func(due dueReport) bool {
		seen := pods[due.volume.Pod.UID]
		pods[due.volume.Pod.UID] = true
		return seen
	})
	return all[:min(len(all), mostReports)]
}

// urgency orders reports: trouble first.
func (due dueReport) urgency() int {
	switch due.Reason {
	case issuer.FilesUnreadable, issuer.CertificateRenewed:
		return 1
	}
	return 0
}

// about returns what there is to report about a volume.
func (r *reports) about(v reportedVolume, now time.Time) (all []issuer.Report) {
	condition, text := troubleOf(v.Volume, v.state, now)
	reason := issuer.Reason(condition)
	switch {
	case reason == "" && r.troubled[v.Target]:
		text := "the roots in the volume follow those of the issuer again"
		if !v.trustOnly {
			text = "the certificate was renewed, and is valid until " + v.state.Validity.NotAfter.UTC().Format(time.RFC3339)
		}
		all = append(all, issuer.Report{Reason: issuer.CertificateRenewed, Text: text})
	case reason != "" && v.concernsPod(now):
		if v.removed {
			reason = issuer.IssuerRemoved
		}
		all = append(all, issuer.Report{Reason: reason, Text: text})
	}
	if v.modeWarning != "" {
		all = append(all, issuer.Report{Reason: issuer.FilesUnreadable, Text: v.modeWarning})
	}
	return all
}

// concernsPod tells whether trouble is worth an event. The roots of a volume with trust only are
// not urgent.
func (v reportedVolume) concernsPod(now time.Time) bool {
	if v.trustOnly {
		return !errors.Is(v.state.Err, volume.ErrGone) && (v.unmanaged != nil || v.state.Failures >= troubleFailures)
	}
	return concernsPod(v.state, now)
}

// concernsPod tells whether trouble is worth an event. An outage of the CA concerns all
// pods, and ends mostly before one of them notices. Its time to be reported is when half
// of the time is over that there is for a renewal. Trouble of the one volume is reported
// sooner.
func concernsPod(s schedule.State, now time.Time) bool {
	v := s.Validity
	switch {
	case errors.Is(s.Err, volume.ErrGone), v.NotAfter.IsZero(): // nothing is known of a certificate
		return false
	case !now.Before(v.NotAfter), s.Failures == 0: // expired, or never renewed
		return true
	case v.NotAfter.Sub(now) < v.NotAfter.Sub(v.Due())/2:
		return true
	}
	return s.Failures >= troubleFailures && !issuer.OutcomeOf(s.Err).IsDown()
}
